"""Trained models in number formats, beside plain transformers with formats made for the tests.

SmolLM2 and Gemma are decoded from 4-bit files, so that every figure is that of the decoded model.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from functools import cache
from statistics import fmean, median
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import precheck
from precheck.measure.format_search import FormatSearch
from precheck.measure.probes.builtin import HELD_OUT
from precheck.records.finding import USABLE
from tests.measure.formats.test_independent import CACHES, WEIGHTS, rounding_cache
from tests.real.fetch import NAMES
from tests.real.test_real import CAUSAL, MODELS

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from precheck.records.report import Report, Run

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((MODELS / name).is_dir() for name in NAMES), reason="make real fetches the models"
    ),
]

OF_8_BITS = ("fp8_e4m3", "fp8_e4m3_calibrated", "fp8_e5m2", "fp8_per_token_head", "int8", "q8_0")
WEIGHTS_OF_8_BITS = ("fp8", "int8", "int8_weight", "q8_0", "mxfp8")
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
    prompts: tuple[str, ...] = HELD_OUT,
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


@cache
def report_on(name: str, kind: str) -> Report:
    """A model with every format of the cache (``kv``), or of weights (``q``)."""
    formats: dict[str, dict[str, tuple[str, ...]]] = {
        "kv": {"caches": (*OF_8_BITS, "int4")},
        "q": {"weights": (*WEIGHTS_OF_8_BITS, "int4")},
    }
    # what a format loses is searched for below: here it would take longer than all the rest
    with mock.patch.object(FormatSearch, "run", return_value=None):
        return scanned(MODELS / name, **formats[kind])


def kls(run: Run) -> list[float]:
    """The mean KL of each text, nats."""
    assert run.logits is not None
    means = [run.logits.kl_by_probe[f"prompt_{number}"] for number in range(1, len(HELD_OUT) + 1)]
    return [mean for mean in means if mean is not None]


def run_in(report: Report, format_: str | None) -> Run:
    formats = () if format_ is None else (format_,)
    return next(run for run in report.runs[1:] if run.configuration.formats == formats)


class Plain:
    """A model as transformers loads it, in float32 and in bfloat16."""

    def __init__(self, name: str) -> None:
        tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in HELD_OUT]
        reference, self.model = (
            AutoModelForCausalLM.from_pretrained(
                MODELS / name, dtype=dtype, attn_implementation="sdpa"
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        with torch.no_grad():
            self.expected = [reference(ids, use_cache=False).logits[0] for ids in self.ids]

    @torch.no_grad()
    def kl(self, format_: str) -> float:
        """Of the texts' mean KL(float32 || bfloat16 in a format), nats."""
        kind, _, of_format = format_.partition(":")
        model = self.model
        if kind == "q":
            model = copy.deepcopy(model)
            WEIGHTS[of_format](model)
        means = []
        for ids, expected in zip(self.ids, self.expected, strict=True):
            stored: dict[str, Any] = {"use_cache": False}
            if kind == "kv":
                stored = {"past_key_values": rounding_cache(CACHES[of_format], model.config)}
            found = model(ids, **stored).logits[0].double().log_softmax(dim=-1)
            log_p = expected.double().log_softmax(dim=-1)
            means.append(float((log_p.exp() * (log_p - found)).sum(dim=-1).mean()))
        return fmean(means)


plain = cache(Plain)


@pytest.mark.parametrize(
    "format_", [*(f"kv:{one}" for one in CACHES), *(f"q:{one}" for one in WEIGHTS)]
)
@pytest.mark.parametrize("name", CAUSAL)
def test_a_format_costs_what_plain_transformers_computes(name: str, format_: str) -> None:
    report = report_on(name, format_.partition(":")[0])
    measured, expected = fmean(kls(run_in(report, format_))), plain(name).kl(format_)
    print(f"\n{name} {format_}: {measured:.3g}, plain transformers {expected:.3g} nat")  # noqa: T201
    # a processor may have several products of 16-bit numbers, by the number of rows
    assert measured == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("kind", ["kv", "q"])
@pytest.mark.parametrize("name", CAUSAL)
def test_formats_of_8_bits_are_silent(name: str, kind: str) -> None:
    report = report_on(name, kind)
    formats = {"kv": OF_8_BITS, "q": WEIGHTS_OF_8_BITS}[kind]
    verdicts = {one: run_in(report, f"{kind}:{one}").verdict for one in formats}
    assert {one: verdict for one, verdict in verdicts.items() if verdict not in USABLE} == {}
    codes = {finding.code for finding in report.findings}
    assert not codes & {"PC601", "PC604"}


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
            scanned(folder, caches=FORMATS_OF_QWEN) for folder in (biased, MODELS / "smollm2-135m")
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
