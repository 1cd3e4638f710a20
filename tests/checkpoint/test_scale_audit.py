"""Stored scales: planted faults are named in each format that has them; sound ones are silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import precheck
from precheck.checkpoint.faults.scale_audit import audit_scales
from precheck.checkpoint.gallery import GALLERY
from precheck.checkpoint.source import open_checkpoint
from precheck.judge.findings.cache_scales import MeasuredCache, misfits
from precheck.judge.gate import FailOn, gate
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.quantities import magnitude
from precheck.records.report import Report
from precheck.records.stored import CacheScale, ScaleAudit
from tests.quantised import LARGEST_INPUT, SCHEME, Tensors, packed, quantised
from tests.shell import change_weights
from tests.tiny_models import tiny_config, tiny_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedModel

    from precheck.records.finding import Finding

pytestmark = pytest.mark.usefixtures("untraced")

UP = "model.layers.1.mlp.up_proj"
EXPERT = "model.layers.1.mlp.experts.2.down_proj"
ATTENTION = "model.layers.{}.self_attn"
FLOAT8 = torch.float8_e4m3fn


def findings(folder: Path) -> dict[str, Finding]:
    """About the files, by code; each is told once."""
    report = precheck.scan(str(folder), static=True, full=True)
    found = [each for each in report.findings if each.code[2] in "56"]
    assert len({each.code for each in found}) == len(found)
    return {each.code: each for each in found}


def bits(name: str, *bytes_: int) -> Callable[[Tensors], None]:
    """The first scales replaced by these bytes."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(torch.uint8).view(-1)[: len(bytes_)] = torch.tensor(
            bytes_, dtype=torch.uint8
        )

    return change


def number(name: str, value: float) -> Callable[[Tensors], None]:
    """The first scale replaced by a number."""

    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[0] = value

    return change


@pytest.mark.parametrize(
    ("layout", "change", "name", "count"),
    [
        ("nvfp4", bits(f"{UP}.weight_scale", 0x7F, 0xFF), f"{UP}.weight_scale", 2),
        ("modelopt", bits(f"{UP}.weight_scale", 0x7F), f"{UP}.weight_scale", 1),
        ("mxfp4", bits(f"{UP}.weight_scale", 0xFF), f"{UP}.weight_scale", 1),
        ("fp8", number(f"{UP}.weight_scale", float("nan")), f"{UP}.weight_scale", 1),
        ("modelopt-fp8", number(f"{UP}.weight_scale", float("inf")), f"{UP}.weight_scale", 1),
        ("modelopt", number(f"{UP}.weight_scale_2", float("nan")), f"{UP}.weight_scale_2", 1),
        (
            "nvfp4",
            number(f"{UP}.weight_global_scale", float("inf")),
            f"{UP}.weight_global_scale",
            1,
        ),
    ],
)
def test_scales_that_are_not_finite_are_named_once(
    layout: str, change: Callable[[Tensors], None], name: str, count: int, tmp_path: Path
) -> None:
    """Not again as the weights that they make NaN, nor as zeroes."""
    found = findings(quantised(tmp_path, layout, change))
    assert list(found) == ["PC610"]
    assert found["PC610"].severity is Severity.ERROR
    assert found["PC610"].modules == (name,)
    assert f"{count} in 1 tensor ({name})" in found["PC610"].message


def test_scales_of_gptq_that_are_infinite_are_named(tmp_path: Path) -> None:
    GALLERY["qwen2.5-gptq"].build(tmp_path, is_planted=False)
    change_weights(tmp_path, number(f"{UP}.scales", float("inf")))
    found = findings(tmp_path)
    assert list(found) == ["PC610"]
    assert found["PC610"].modules == (f"{UP}.scales",)


def zero_group(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        scales = tensors[name].float()
        scales[0] = 0.0
        tensors[name] = scales.to(tensors[name].dtype)

    return change


@pytest.mark.parametrize("layout", ["nvfp4", "modelopt", "fp8", "gptq"])
def test_zero_scales_over_numbers_are_named(layout: str, tmp_path: Path) -> None:
    name = f"{UP}.scales" if layout == "gptq" else f"{UP}.weight_scale"
    if layout == "gptq":
        GALLERY["qwen2.5-gptq"].build(tmp_path, is_planted=False)
        change_weights(tmp_path, zero_group(name))
        found = findings(tmp_path)
    else:
        found = findings(quantised(tmp_path, layout, zero_group(name)))
    assert list(found) == ["PC611"]
    assert found["PC611"].severity is Severity.ERROR
    assert found["PC611"].modules == (name,)


@pytest.mark.parametrize("numbers", [0.0, 6.0])
def test_a_scale_that_was_too_small_to_store_is_not(numbers: float, tmp_path: Path) -> None:
    """Divided by zero, what it scales is stored as the largest number, or as zero."""

    def change(tensors: Tensors) -> None:
        zero_group(f"{UP}.weight_scale")(tensors)
        columns = tensors[f"{UP}.weight_packed"].shape[1] * 2
        signs = torch.tensor([1.0, -1.0]).repeat(columns // 2)
        tensors[f"{UP}.weight_packed"][0] = packed(signs * numbers)

    assert findings(quantised(tmp_path, "nvfp4", change)) == {}


def test_all_scales_zero_stays_one_finding(tmp_path: Path) -> None:
    for layout in ("nvfp4", "fp8"):
        folder = tmp_path / layout
        change = lambda tensors: tensors.update(  # noqa: E731
            {f"{UP}.weight_scale": torch.zeros_like(tensors[f"{UP}.weight_scale"])}
        )
        assert list(findings(quantised(folder, layout, change))) == ["PC512"]


@pytest.mark.parametrize(
    ("layout", "change", "name"),
    [
        ("nvfp4", bits(f"{UP}.weight_scale", 0xB8), f"{UP}.weight_scale"),
        ("modelopt", number(f"{UP}.weight_scale_2", -0.01), f"{UP}.weight_scale_2"),
        ("fp8", number(f"{UP}.input_scale", -0.5), f"{UP}.input_scale"),
    ],
)
def test_negative_scales_are_a_warning(
    layout: str, change: Callable[[Tensors], None], name: str, tmp_path: Path
) -> None:
    found = findings(quantised(tmp_path, layout, change))
    assert list(found) == ["PC611"]
    assert (found["PC611"].severity, found["PC611"].modules) == (Severity.WARNING, (name,))


@pytest.mark.parametrize(
    ("layout", "part", "value"),
    [
        ("nvfp4", "input_global_scale", float("inf")),
        ("nvfp4", "input_global_scale", 0.0),
        ("nvfp4", "input_global_scale", 3e38),
        ("modelopt", "input_scale", 0.0),
        ("modelopt", "input_scale", 1e-39),
        ("modelopt", "input_scale", float("nan")),
        ("fp8", "input_scale", 0.0),
        ("modelopt-fp8", "input_scale", 1e-40),
    ],
)
def test_the_input_scale_of_a_dead_expert_is_named(
    layout: str, part: str, value: float, tmp_path: Path
) -> None:
    change = number(f"{EXPERT}.{part}", value)
    found = findings(quantised(tmp_path, layout, change, model="qwen3_moe"))
    assert list(found) == ["PC612"]
    assert found["PC612"].severity is Severity.ERROR
    assert found["PC612"].modules == (f"{EXPERT}.{part}",)
    assert "some prompts work and others fail" in found["PC612"].message
    # 3 layers of 4 experts of 3 linears, and 4 of attention
    assert f"1 of {3 * (4 * 3 + 4)}" in found["PC612"].message


GROUPED = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
MIXTURES: dict[str, dict[str, Any]] = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4},
    "Qwen3Moe": {"num_experts": 4},
    "Olmoe": {"num_experts": 4},
    "DeepseekV3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    },
    "Glm4Moe": {"n_routed_experts": 4, "first_k_dense_replace": 0},
    "Dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
    },
    "Phimoe": {"num_local_experts": 4},
    "FlexOlmo": {"num_experts": 4},
}


def mixture(name: str) -> PreTrainedModel:
    """Two layers of four experts, of which a token sees two."""
    common = tiny_config("llama", num_layers=2).to_dict()
    tokens = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    kept = (*tokens, "hidden_size", "num_hidden_layers", "num_attention_heads")
    config = getattr(transformers, f"{name}Config")(
        **{setting: common[setting] for setting in kept},
        intermediate_size=64,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        num_key_value_heads=common["num_attention_heads"],
        num_experts_per_tok=2,
        **MIXTURES[name],
    )
    return tiny_of(config)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_dead_expert_is_named_in_every_mixture_and_its_twin_is_silent(
    name: str, tmp_path: Path
) -> None:
    named: list[str] = []

    def kill(tensors: Tensors) -> None:
        scales = [each for each in tensors if ".experts.2." in each and "layers.1." in each]
        named.append(max(each for each in scales if each.endswith("input_scale")))
        tensors[named[0]].fill_(0.0)

    model = mixture(name)
    found = findings(quantised(tmp_path / "dead", "fp8", kill, model=model))
    assert list(found) == ["PC612"]
    assert found["PC612"].modules == tuple(named)
    assert findings(quantised(tmp_path / "sound", "fp8", model=model)) == {}


@pytest.mark.parametrize(("layout", "part"), [("modelopt", "input_scale"), ("fp8", "input_scale"),
                                              ("nvfp4", "input_global_scale")])  # fmt: skip
def test_an_expert_without_its_scale_is_an_error(layout: str, part: str, tmp_path: Path) -> None:
    """Also where most experts of the layer lack it."""

    def lose(tensors: Tensors) -> None:
        for expert in (1, 2, 3):
            del tensors[f"model.layers.1.mlp.experts.{expert}.down_proj.{part}"]

    found = findings(quantised(tmp_path, layout, lose, model="qwen3_moe"))
    assert list(found) == ["PC613"]
    assert found["PC613"].severity is Severity.ERROR
    assert f"{EXPERT}.{part}" in found["PC613"].modules
    assert len(found["PC613"].modules) == 3


def test_a_layer_without_its_scale_is_a_warning(tmp_path: Path) -> None:
    found = findings(
        quantised(tmp_path, "fp8", lambda tensors: tensors.__delitem__(f"{UP}.input_scale"))
    )
    assert list(found) == ["PC613"]
    assert (found["PC613"].severity, found["PC613"].modules) == (
        Severity.WARNING,
        (f"{UP}.input_scale",),
    )


@pytest.mark.parametrize("layout", ["modelopt", "fp8"])
def test_inputs_in_16_bits_need_no_scale(layout: str, tmp_path: Path) -> None:
    def lose(tensors: Tensors) -> None:
        for name in [each for each in tensors if each.endswith(".input_scale")]:
            del tensors[name]

    assert findings(quantised(tmp_path, layout, lose)) == {}


@pytest.mark.parametrize("layout", ["modelopt", "nvfp4"])
def test_an_expert_that_was_hardly_reached_is_a_warning(layout: str, tmp_path: Path) -> None:
    part, value = ("input_scale", 1e-9) if layout == "modelopt" else ("input_global_scale", 1e9)
    change = number(f"{EXPERT}.{part}", value)
    found = findings(quantised(tmp_path, layout, change, model="qwen3_moe"))
    assert list(found) == ["PC617"]
    assert (found["PC617"].severity, found["PC617"].module) == (Severity.WARNING, EXPERT)
    assert f"its 4 siblings more than {LARGEST_INPUT:#.3g}" in found["PC617"].message


@pytest.mark.parametrize(
    ("layout", "of_all"), [("nvfp4", "weight_global_scale"), ("modelopt", "weight_scale_2")]
)
def test_block_scales_without_a_factor_for_all_are_a_warning(
    layout: str, of_all: str, tmp_path: Path
) -> None:
    """The same numbers: only the factor is another, and the block scales what they are then."""
    factor_for_all = 8.0

    def change(tensors: Tensors) -> None:
        for name in [each for each in tensors if each.endswith("weight_scale")]:
            scale = tensors[name.replace("weight_scale", of_all)]
            is_divisor = of_all == "weight_global_scale"
            factor = 1 / scale if is_divisor else scale
            tensors[name] = (tensors[name].float() * factor / factor_for_all).to(FLOAT8)
            scale.fill_(1 / factor_for_all if is_divisor else factor_for_all)

    found = findings(quantised(tmp_path, layout, change))
    assert list(found) == ["PC614"]
    assert found["PC614"].severity is Severity.WARNING
    assert len(found["PC614"].modules) > 1


@pytest.mark.parametrize("layout", ["nvfp4", "modelopt"])
def test_blocks_of_zeroes_may_have_any_scale(layout: str, tmp_path: Path) -> None:
    """As modelopt stores the scale of a padded row: the smallest that float8 has."""

    def change(tensors: Tensors) -> None:
        part = "weight_packed" if layout == "nvfp4" else "weight"
        tensors[f"{UP}.{part}"][:20] = 0
        bytes_ = tensors[f"{UP}.weight_scale"].view(torch.uint8)
        bytes_[:20] = 1

    assert findings(quantised(tmp_path, layout, change)) == {}


# Keys and values


def cache_scales(value: float, name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for layer in range(3):
            for side in "kv":
                tensors[f"{ATTENTION.format(layer)}.{name.format(side)}"] = torch.tensor(value)

    return change


@pytest.mark.parametrize("name", ["{0}_scale", "{0}_proj.{0}_scale", "{0}_proj.output_scale"])
@pytest.mark.parametrize("layout", ["fp8", "nvfp4"])
def test_cache_scales_that_are_1_everywhere_are_a_note(
    layout: str, name: str, tmp_path: Path
) -> None:
    change = cache_scales(1.0, name)
    found = findings(quantised(tmp_path / "a", layout, change, kv_cache_scheme=SCHEME))
    assert list(found) == ["PC615"]
    assert found["PC615"].severity is Severity.NOTE
    assert len(found["PC615"].modules) == 6
    calibrated = cache_scales(0.03, name)
    assert findings(quantised(tmp_path / "b", layout, calibrated, kv_cache_scheme=SCHEME)) == {}


@pytest.mark.parametrize(
    ("layout", "settings", "is_told"),
    [
        ("fp8", {"kv_cache_scheme": SCHEME}, True),
        ("modelopt", {"kv_cache_quant_algo": "FP8"}, True),
        ("fp8", {"kv_cache_scheme": SCHEME | {"dynamic": True}}, False),
        ("modelopt", {"kv_cache_quant_algo": None}, False),
        ("nvfp4", {"kv_cache_scheme": None}, False),
    ],
)
def test_a_declared_cache_without_scales_is_a_note(
    layout: str, settings: dict[str, Any], is_told: bool, tmp_path: Path
) -> None:
    found = findings(quantised(tmp_path, layout, **settings))
    assert list(found) == (["PC615"] if is_told else [])


def test_a_cache_scale_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    found = findings(quantised(tmp_path, "fp8", cache_scales(float("nan"), "{0}_scale")))
    assert list(found) == ["PC610"]
    assert len(found["PC610"].modules) == 6


def stored_cache(key: float, value: float) -> ScaleAudit:
    return ScaleAudit(
        cache=tuple(
            CacheScale(
                name=f"{ATTENTION.format(0)}.{side}_proj.{side}_scale",
                of_keys=side == "k",
                of_values=side == "v",
                smallest=scale,
                largest=scale,
            )
            for side, scale in (("k", key), ("v", value))
        )
    )


@pytest.mark.parametrize(
    ("scales", "largest", "severities"),
    [
        ((1.0, 1.0), (73.5, 1272.0), [Severity.WARNING]),
        ((1.0, 3.0), (73.5, 1272.0), []),
        ((1.0, 1.0), (73.5, 500.0), []),
        ((1.0, 1.0), (60.0, 1.0), [Severity.NOTE]),
        ((0.1, 100.0), (300.0, 20.0), [Severity.WARNING, Severity.NOTE]),
        ((1.0, 1.0), (None, None), []),
    ],
)
def test_cache_scales_are_compared_with_what_was_measured(
    scales: tuple[float, float],
    largest: tuple[float | None, float | None],
    severities: list[Severity],
) -> None:
    """1,272 in a value is Inkling's, for which a scale of 3 is the cure."""
    measured = [
        MeasuredCache(module=ATTENTION.format(0), key=largest[0], value=largest[1]),
        MeasuredCache(module=ATTENTION.format(10), key=1e6, value=1e6),
    ]
    found = list(misfits(stored_cache(*scales), measured))
    assert [each.severity for each in found] == severities
    assert all(each.code == "PC616" for each in found)
    if severities[:1] == [Severity.WARNING] and largest[1] == 1272:
        assert found[0].modules == (f"{ATTENTION.format(0)}.v_proj.v_scale",)
        assert "values up to 448" in found[0].message
        assert "1,272" in found[0].message


def test_a_run_audits_the_same_scales(tmp_path: Path) -> None:
    change = bits(f"{UP}.weight_scale", 0x7F)
    folder = quantised(tmp_path, "modelopt", change)
    static = precheck.scan(str(folder), static=True, full=True)
    report = precheck.scan(
        str(folder), quick=True, dtypes=["float32"], attn_implementations=["sdpa"]
    )
    assert report.checkpoint == static.checkpoint
    assert {"PC610", "PC113"} <= {each.code for each in report.findings}


@pytest.mark.parametrize(
    ("part", "scale"),
    [
        ("input_scale", torch.zeros(0)),
        ("input_scale", torch.tensor([3e38])),
        ("input_scale", torch.ones(2, 3, dtype=torch.bfloat16)),
        ("input_scale", torch.tensor(7)),
        ("k_scale", torch.zeros(0)),
        ("k_scale", torch.full((2, 1, 1), 0.5, dtype=torch.float16)),
        ("v_scale", torch.tensor(3, dtype=torch.uint8)),
    ],
)
@pytest.mark.parametrize("layout", ["fp8", "modelopt"])
def test_scales_of_any_shape_and_dtype_are_read(
    layout: str, part: str, scale: torch.Tensor, tmp_path: Path
) -> None:
    def change(tensors: Tensors) -> None:
        tensors[f"{UP}.{part}"] = scale

    report = precheck.scan(str(quantised(tmp_path, layout, change)), static=True, full=True)
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report
    assert "PC610" not in {each.code for each in report.findings}


@pytest.mark.parametrize("model", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("layout", ["fp8", "modelopt", "nvfp4"])
def test_a_gated_product_beyond_its_reader_s_scale_is_a_warning(
    layout: str, model: str, tmp_path: Path
) -> None:
    """Only that of the layer whose scales are small."""

    def narrow(tensors: Tensors) -> None:
        for name, tensor in tensors.items():
            if "layers.1." in name and ".down_proj.input_" in name:
                tensor.mul_(100.0 if "global" in name else 0.01)

    options: dict[str, Any] = {"quick": True, "attn_implementations": ["sdpa"]}
    report = precheck.scan(str(quantised(tmp_path, layout, narrow, model=model)), **options)
    (found,) = (each for each in report.findings if each.code[2] in "56")
    (product,) = (
        row.abs_max
        for row in report.headroom
        if row.mechanism is Mechanism.GATED_PRODUCT and row.layer == 1
    )
    assert (found.code, found.severity, found.layer) == ("PC617", Severity.WARNING, 1)
    assert all("layers.1.mlp." in name and "down_proj" in name for name in found.modules)
    assert product > 1.5 * LARGEST_INPUT / 100
    assert f"up to {magnitude(LARGEST_INPUT / 100)}; the largest is" in found.message


@pytest.mark.parametrize("part", ["input_scale", "weight_scale"])
def test_the_gate_rejects_a_checkpoint_with_a_broken_scale(part: str, tmp_path: Path) -> None:
    """Even where every run is fine, as no run here rounds inputs."""
    value = float("nan") if part == "weight_scale" else 0.0
    folder = quantised(tmp_path, "fp8", number(f"{UP}.{part}", value))
    report = precheck.scan(str(folder), quick=True)
    assert not gate(report, fail_on=FailOn.ERROR).holds
    assert {run.verdict for run in report.runs} == {Verdict.SAFE} or part == "weight_scale"


def test_parameters_that_are_called_like_scales_are_not(tmp_path: Path) -> None:
    """A scale of the cache is only what the model itself has no place for."""
    name = "model.layers.0.self_attn.k_scale"
    folder = quantised(tmp_path, "fp8", lambda tensors: tensors.update({name: torch.ones(1)}))
    checkpoint = open_checkpoint(str(folder), observe=lambda _: None)
    with checkpoint.open_weights() as stored:
        assert audit_scales(stored, checkpoint.quantization, owned=()).cache != ()
        assert audit_scales(stored, checkpoint.quantization, owned={name}).cache == ()
