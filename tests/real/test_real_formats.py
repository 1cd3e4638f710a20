"""Trained models in every number format, beside plain transformers with formats made for the tests.

SmolLM2 and Gemma are decoded from 4-bit files, so that every figure is that of the decoded model.
One model and kind of format takes some minutes: ``pytest -s -m real -k "smollm2 and kv:"``.
"""

from __future__ import annotations

import copy
import json
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaForCausalLM

import precheck
from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS
from precheck.measure.format_search import FormatSearch
from precheck.measure.probes.builtin import HELD_OUT
from precheck.records.finding import USABLE, Severity
from tests.measure.formats.plain_caches import CACHES, ROTATED, rounding_cache, with_stored_scales
from tests.measure.formats.plain_weights import WEIGHTS
from tests.real.fetch import NAMES
from tests.real.test_real import CAUSAL, MODELS

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.records.report import Report, Run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((MODELS / name).is_dir() for name in NAMES), reason="make real fetches the models"
    ),
]

TEXT = f"{HELD_OUT[0]} {HELD_OUT[6]}"
"""One, so that it is a batch by itself (some scales are those of a batch), and a scan is short."""
STORED_SCALE = "fp8_e4m3_checkpoint"
AT_A_TIME = 5
"""Formats in one scan."""
FORMATS = (*(f"kv:{name}" for name in CACHE_FORMATS), *(f"q:{name}" for name in WEIGHT_FORMATS))
OF_8_BITS = tuple(
    f"{kind}:{row.name}"
    for kind, rows in (("kv", CACHE_FORMATS), ("q", WEIGHT_FORMATS))
    for row in rows.values()
    if row.bits >= 8
)
BIAS_NORMS = (605.0, 22.0, 921.0)
"""Of the first layer, the median and the last: https://github.com/ggml-org/llama.cpp/issues/21385
"""

NUM_PAIRS = 2
"""Rotary pairs of each head with a bias."""


def scanned(
    folder: Path,
    *,
    caches: tuple[str, ...] = (),
    weights: tuple[str, ...] = (),
    prompts: tuple[str, ...],
) -> Report:
    """Each of a few short texts as it is, without padding, and nothing else."""
    return precheck.scan(
        folder,
        dtypes=["bfloat16"],
        attn_implementations=["sdpa"],
        prompts=prompts,
        quick=True,
        kv_cache_dtypes=caches,
        quantizations=weights,
    )


def beside(format_: str) -> tuple[str, ...]:
    """The formats of the scan that one is measured in: five of a kind, for the sake of memory."""
    kind, _, name = format_.partition(":")
    names = tuple(CACHE_FORMATS if kind == "kv" else WEIGHT_FORMATS)
    start = names.index(name) // AT_A_TIME * AT_A_TIME
    return names[start : start + AT_A_TIME]


@cache
def report_on(name: str, kind: str, formats: tuple[str, ...]) -> Report:
    """A model with some formats of the cache (``kv``), or of weights (``q``)."""
    # what a format loses is searched for below: here it would take longer than all the rest
    with mock.patch.object(FormatSearch, "run", return_value=None):
        if kind == "q":
            return scanned(MODELS / name, weights=formats, prompts=(TEXT,))
        folder = plain(name).with_scales
        return scanned(folder, caches=formats, prompts=(TEXT,))


def kls(run: Run) -> list[float]:
    """The mean KL of each text, nats."""
    assert run.logits is not None
    return [
        mean
        for probe, mean in run.logits.kl_by_probe.items()
        if probe.startswith("prompt_") and mean is not None
    ]


def run_in(report: Report, format_: str | None) -> Run:
    formats = () if format_ is None else (format_,)
    return next(run for run in report.runs[1:] if run.configuration.formats == formats)


class MeasuringCache(DynamicCache):
    """Sees the largest key and the largest value of each layer."""

    def __init__(self, largest: dict[str, float], config: Any) -> None:
        super().__init__(config=config)
        self.largest = largest

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        for part, states in (("k", key_states), ("v", value_states)):
            name = f"model.layers.{layer_idx}.self_attn.{part}_scale"
            self.largest[name] = max(self.largest.get(name, 0.0), float(states.abs().max()))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


class Plain:
    """A model as transformers loads it, in float32 and in bfloat16."""

    def __init__(self, name: str, scratch: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
        reference, self.model = (
            AutoModelForCausalLM.from_pretrained(
                MODELS / name, dtype=dtype, attn_implementation="sdpa"
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        self.largest: dict[str, float] = {}
        with torch.no_grad():
            cache = MeasuringCache(self.largest, reference.config)
            self.expected = reference(self.ids, past_key_values=cache).logits[0]
        self.with_scales = self._with_scales(MODELS / name, scratch / name)

    def _with_scales(self, source: Path, folder: Path) -> Path:
        """The checkpoint with calibrated scales of its cache in a file of their own."""
        folder.mkdir()
        weights, of_cache = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
        for path in source.iterdir():
            is_weights = path.name == "model.safetensors"
            (folder / (weights if is_weights else path.name)).symlink_to(path.resolve())
        scales = {name: torch.tensor(size / 448) for name, size in self.largest.items()}
        save_file(scales, folder / of_cache, metadata={"format": "pt"})
        with safe_open(folder / weights, "pt") as stored:
            where = dict.fromkeys(stored.keys(), weights)
        index = {"metadata": {}, "weight_map": where | dict.fromkeys(scales, of_cache)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        return folder

    @torch.no_grad()
    def kl(self, format_: str) -> float:
        """Of the text, the mean KL(float32 || bfloat16 in a format), nats."""
        kind, _, of_format = format_.partition(":")
        model = copy.deepcopy(self.model)
        if kind == "q":
            WEIGHTS[of_format](model)
        found = model(self.ids, **self._cache(kind, of_format)).logits[0]
        return kl_divergence(self.expected, found)

    def _cache(self, kind: str, of_format: str) -> dict[str, Any]:
        if kind == "q":
            return {"use_cache": False}
        is_stored = of_format == STORED_SCALE
        form = with_stored_scales(self.with_scales) if is_stored else CACHES[of_format]
        return {"past_key_values": rounding_cache(form, self.model.config)}


def kl_divergence(expected: Tensor, found: Tensor) -> float:
    """The mean over tokens, nats."""
    log_p, log_q = (logits.double().log_softmax(dim=-1) for logits in (expected, found))
    return float((log_p.exp() * (log_p - log_q)).sum(dim=-1).mean())


@cache
def scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@cache
def plain(name: str) -> Plain:
    return Plain(name, Path(scratch().name))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_format_costs_what_plain_transformers_computes(name: str, format_: str) -> None:
    expected = plain(name).kl(format_)
    report = report_on(name, format_.partition(":")[0], beside(format_))
    run = run_in(report, format_)
    (measured,) = kls(run)
    about = f"{run.verdict.value} {' '.join(alarms_about(run, report))}"
    print(f"\n| {name} | `{format_}` | {measured:.3g} | {expected:.3g} | {about}")  # noqa: T201
    # rotations have sums in another order: some numbers of 4 bits are rounded the other way
    is_rotated = format_.removeprefix("kv:") in ROTATED
    assert measured == pytest.approx(expected, rel=0.4 if is_rotated else 0.01)


@pytest.mark.parametrize("format_", OF_8_BITS)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_format_of_8_bits_is_silent(name: str, format_: str) -> None:
    report = report_on(name, format_.partition(":")[0], beside(format_))
    run = run_in(report, format_)
    assert run.verdict in USABLE
    assert alarms_about(run, report) == []


def alarms_about(run: Run, report: Report) -> list[str]:
    number = report.runs.index(run)
    return [
        finding.code
        for finding in report.findings
        if number in finding.runs and finding.severity is not Severity.NOTE
    ]


@torch.no_grad()
def queries_of(model: Any) -> list[Tensor]:
    """Of each layer, ``(tokens, kv_heads, queries, head_dim)`` before the rotation."""
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m")
    config, found = model.config, []
    shape = (config.num_key_value_heads, -1, config.head_dim)
    with ExitStack() as hooks:
        for layer in model.model.layers:
            hook = layer.self_attn.q_proj.register_forward_hook(
                lambda _, __, output: found.append(output[0].unflatten(-1, shape))
            )
            hooks.callback(hook.remove)
        for text in HELD_OUT:
            model(tokenizer(text, return_tensors="pt")["input_ids"], use_cache=False)
    number = len(model.model.layers)
    return [torch.cat(found[layer::number]) for layer in range(number)]


def biases(queries: Tensor, norm: float) -> Tensor:
    """Key biases ``(kv_heads, head_dim)`` of a layer, where its queries read them.

    As a trained bias would, it lies along the mean query: attention to all tokens grows alike, and
    the softmax takes it away again. Of the slower half of rotary pairs (a period of 2,000 tokens
    and more), those that the queries are largest in have it.
    """
    half = queries.shape[-1] // 2
    pairs = queries.unflatten(-1, (2, half))
    sizes = pairs.norm(dim=-2).mean(dim=0).amax(dim=1)[:, half // 2 :]
    chosen = sizes.topk(NUM_PAIRS).indices + half // 2
    found = torch.zeros(len(pairs[0]), 2, half)
    for head, of_head in enumerate(chosen):
        mean = pairs[:, head].mean(dim=(0, 1))[:, of_head]
        found[head][:, of_head] = mean / mean.norm(dim=0)
    return (found * (norm / found.norm())).flatten(1)


def with_key_biases(folder: Path) -> Path:
    """SmolLM2 with key biases of the published norms."""
    base: Any = AutoModelForCausalLM.from_pretrained(MODELS / "smollm2-135m", dtype=torch.float32)
    queries = queries_of(base)
    base.config.attention_bias = True
    model: Any = LlamaForCausalLM(base.config)
    model.load_state_dict(base.state_dict(), strict=False)
    first, median, last = BIAS_NORMS
    layers = model.model.layers
    with torch.no_grad():
        for number, layer in enumerate(layers):
            attention = layer.self_attn
            for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
                getattr(attention, projection).bias.zero_()
            norm = {0: first, len(layers) - 1: last}.get(number, median)
            attention.k_proj.bias.copy_(biases(queries[number], norm).flatten())
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODELS / "smollm2-135m").save_pretrained(folder)
    return folder


FORMATS_OF_QWEN = ("fp8_e4m3", "fp8_e5m2", "int8", "int4")


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_key_biases(tmp_path_factory.mktemp("biased"))


def test_key_biases_of_the_published_norms_cost_ten_times_as_much(biased: Path) -> None:
    with mock.patch.object(FormatSearch, "run", return_value=None):  # below, in one format
        reports = [
            scanned(folder, caches=FORMATS_OF_QWEN, prompts=HELD_OUT[:4])
            for folder in (biased, MODELS / "smollm2-135m")
        ]
    ratios = {}
    for name in FORMATS_OF_QWEN:
        with_bias, without = (median(kls(run_in(report, f"kv:{name}"))) for report in reports)
        print(f"\n{name}: {with_bias:.3g} nat, without the biases {without:.3g}")  # noqa: T201
        ratios[name] = with_bias / without
    # bfloat16 itself rounds keys of such a size
    assert 5 * median(kls(run_in(reports[0], None))) < median(
        kls(run_in(reports[0], "kv:fp8_e4m3"))
    )
    assert min(ratios["fp8_e4m3"], ratios["int8"]) > 10, ratios
    # what SmolLM2 loses without biases is large already in the two coarsest formats
    assert min(ratios["fp8_e5m2"], ratios["int4"]) > 4, ratios


def test_the_first_layers_key_bias_is_named(biased: Path) -> None:
    report = scanned(biased, caches=("int4",), prompts=HELD_OUT[:2])
    worst = run_in(report, "kv:int4").format_culprits
    assert worst is not None
    assert worst.parts[0].part == "model.layers.0 keys"
    assert worst.parts[0].tensor == "model.layers.0.self_attn.k_proj.bias"
