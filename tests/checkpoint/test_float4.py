"""Weights in float4: decoded bit for bit as others decode them, streamed, refused where broken."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import _convert_moe_packed_tensors

import precheck
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.quantization import Quantization, read_quantization
from precheck.errors import CheckpointCorruptError, UnsupportedModelError
from tests.checkpoint.float4_by_others import FILE, NUM_INPUTS, NUM_OUTPUTS
from tests.quantised import CONFIGS, LARGEST_INPUT, WRITERS, Tensors, quantised
from tests.shell import change_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("untraced")

FIRST = "model.layers.0.mlp.up_proj"


def settings_of(layout: str) -> Quantization:
    found = read_quantization({"quantization_config": CONFIGS[layout]}, where="here")
    assert found is not None
    assert found.is_decoded_here
    return found


def stored(folder: Path, tensors: Tensors) -> list[Path]:
    save_file(tensors, folder / "model.safetensors")
    return [folder / "model.safetensors"]


@pytest.mark.parametrize("layout", ["nvfp4", "mxfp4"])
def test_compressed_tensors_decodes_to_the_same_bits(layout: str, tmp_path: Path) -> None:
    by_others = {
        name.removeprefix(f"{layout}."): tensor
        for name, tensor in load_file(FILE).items()
        if name.startswith(f"{layout}.")
    }
    expected = by_others.pop("decoded")
    files = stored(tmp_path, {f"a.{name}": tensor for name, tensor in by_others.items()})
    with DecodedWeights(files, settings_of(layout)) as weights:
        assert list(weights) == ["a.weight"]
        assert weights.shape("a.weight") == (NUM_OUTPUTS, NUM_INPUTS)
        assert torch.equal(weights["a.weight"], expected)
        buffer = torch.empty(weights.nbytes("a.weight"), dtype=torch.uint8)
        for rows in (slice(3, 17), [5, 0]):
            part = weights.read_rows_into("a.weight", rows, buffer)
            assert torch.equal(part, expected[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpt_oss_is_decoded_as_transformers_does(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every byte, and exponents of the whole range in which float32 has normal numbers."""
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 40, 2, 16), dtype=torch.uint8, generator=generator)
    blocks[0, 0:8] = torch.arange(256, dtype=torch.uint8).view(8, 2, 16)
    scales = torch.randint(3, 252, (3, 40, 2), dtype=torch.uint8, generator=generator)
    expected = _convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    files = stored(
        tmp_path, {"experts.down_proj_blocks": blocks, "experts.down_proj_scales": scales}
    )
    with DecodedWeights(files, Quantization(method="mxfp4")) as weights:
        assert list(weights) == ["experts.down_proj"]
        decoded = weights["experts.down_proj"]
        assert weights.shape("experts.down_proj") == (3, 64, 40) == tuple(decoded.shape)
        assert torch.equal(decoded.to(dtype), expected)
        buffer = torch.empty(weights.nbytes("experts.down_proj"), dtype=torch.uint8)
        part = weights.read_rows_into("experts.down_proj", slice(1, 3), buffer)
        assert torch.equal(part, decoded[1:])


def test_the_exponent_0xff_is_nan(tmp_path: Path) -> None:
    tensors = {
        "a.weight_packed": torch.full((2, 16), 0x22, dtype=torch.uint8),
        "a.weight_scale": torch.tensor([[127], [0xFF]], dtype=torch.uint8),
    }
    with DecodedWeights(stored(tmp_path, tensors), settings_of("mxfp4")) as weights:
        decoded = weights["a.weight"]
    assert decoded[0].eq(1).all()
    assert decoded[1].isnan().all()


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_packed_checkpoint_is_its_plain_twin(layout: str, tmp_path: Path) -> None:
    folder = quantised(tmp_path / "packed", layout, twin=tmp_path / "plain")
    options: dict[str, Any] = {
        "dtypes": ["bfloat16"], "attn_implementations": ["sdpa"], "quick": True
    }  # fmt: skip
    ours = precheck.scan(str(folder), **options)
    plain = precheck.scan(str(tmp_path / "plain"), **options)
    assert ours.runs == plain.runs
    assert ours.model.quantization is not None
    assert ours.model.quantization["decoded_by"] == "precheck"


@pytest.mark.parametrize("layout", ["nvfp4", "modelopt", "mxfp4"])
def test_streamed_and_resident_are_the_same_bits(layout: str, tmp_path: Path) -> None:
    folder = quantised(tmp_path, layout, model="qwen3_moe")
    options: dict[str, Any] = {"dtypes": ["bfloat16"], "quick": True}
    streamed = precheck.scan(str(folder), **options)
    resident = precheck.scan(str(folder), resident=True, **options)
    assert streamed.runs == resident.runs
    assert streamed.checkpoint == resident.checkpoint


@pytest.mark.parametrize("layout", list(WRITERS))
def test_a_sound_checkpoint_has_no_finding_about_its_files(layout: str, tmp_path: Path) -> None:
    report = precheck.scan(
        str(quantised(tmp_path, layout, model="qwen3_moe")), static=True, full=True
    )
    assert [each.code for each in report.findings if each.code[2] in "56"] == []
    assert report.checkpoint.missing == report.checkpoint.unexpected == ()
    assert report.checkpoint.digest is not None
    assert report.checkpoint.scales.num_scales > 0
    allowed = {each.smallest for each in report.checkpoint.scales.inputs}
    assert all(value == pytest.approx(LARGEST_INPUT) for value in allowed)


def test_modelopts_own_file_is_read_where_the_config_is_silent(tmp_path: Path) -> None:
    folder = quantised(tmp_path, "modelopt")
    change_config(folder, quantization_config=None)
    exported = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(exported))
    report = precheck.scan(str(folder), static=True, full=True)
    assert report.model.quantization is not None
    assert report.model.quantization["quant_method"] == "modelopt"
    assert [each.code for each in report.findings if each.code[2] in "56"] == []


def _without(part: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.__delitem__(f"{FIRST}.{part}")


def _cut(part: str, rows: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[f"{FIRST}.{part}"] = tensors[f"{FIRST}.{part}"][:rows].contiguous()

    return change


def _as(part: str, tensor: torch.Tensor) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({f"{FIRST}.{part}": tensor})


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("nvfp4", _without("weight_scale"), f"{FIRST}.weight_scale is missing"),
        ("nvfp4", _without("weight_global_scale"), f"{FIRST}.weight_global_scale is missing"),
        ("modelopt", _without("weight_scale_2"), f"{FIRST}.weight_scale_2 is missing"),
        ("mxfp4", _without("weight_scale"), f"{FIRST}.weight_scale is missing"),
        ("nvfp4", _cut("weight_scale", 5), "weight_scale is .5, 4., but its weight needs .96, 4."),
        ("mxfp4", _cut("weight_scale", 0), "weight_scale is .0, 2., but its weight needs .96, 2."),
        ("nvfp4", _as("weight_global_scale", torch.ones(7)), "not one number"),
        ("nvfp4", _as("weight_scale", torch.ones(96, 4)), "weight_scale is float32"),
        ("modelopt", _as("weight", torch.zeros(96, dtype=torch.uint8)), "not a matrix"),
        ("fp8", _as("weight_scale", torch.ones(7, 1)), "weight_scale is .7, 1."),
        ("modelopt-fp8", _as("weight_scale", torch.ones(3)), "weight_scale is .3,"),
    ],
)
def test_what_does_not_fit_is_a_clear_error(
    layout: str, change: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    folder = quantised(tmp_path, layout, change)
    for is_static in (True, False):
        with pytest.raises(CheckpointCorruptError, match=message):
            precheck.scan(str(folder), static=is_static)


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        ((2, 4, 2, 16), None, "down_proj_scales is missing"),
        ((2, 4, 2, 16), (2, 4, 3), r"needs \(2, 4, 2\)"),
        ((2, 4, 2, 8), (2, 4, 2), r"not \(experts, outputs, groups, 16\)"),
    ],
)
def test_experts_that_do_not_fit_are_a_clear_error(
    blocks: tuple[int, ...], scales: tuple[int, ...] | None, message: str, tmp_path: Path
) -> None:
    tensors = {"experts.down_proj_blocks": torch.zeros(blocks, dtype=torch.uint8)}
    if scales is not None:
        tensors["experts.down_proj_scales"] = torch.zeros(scales, dtype=torch.uint8)
    with pytest.raises(CheckpointCorruptError, match=message):
        DecodedWeights(stored(tmp_path, tensors), Quantization(method="mxfp4"))


@pytest.mark.parametrize("part", ["pre_quant_scale", "weight_zero_point"])
def test_parts_that_nothing_applies_are_refused(part: str, tmp_path: Path) -> None:
    folder = quantised(tmp_path, "nvfp4", _as(part, torch.ones(64)))
    with pytest.raises(UnsupportedModelError, match=part):
        precheck.scan(str(folder), static=True, full=True)


@pytest.mark.parametrize(
    "settings", [{"quant_algo": "W4A8_AWQ"}, {"quant_algo": None}, {"quant_algo": ["NVFP9"]}]
)
def test_an_unknown_algorithm_of_modelopt_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="modelopt with"):
        read_quantization(
            {"quantization_config": {"quant_method": "modelopt", **settings}}, where="a"
        )


@pytest.mark.parametrize(
    "settings",
    [
        {"format": "pack-quantized"},
        {"config_groups": {"group_0": {"format": "int-quantized"}}},
        {"transform_config": {"R1": {}}},
        {"sparsity_config": {"format": "sparse-24-bitmask"}},
    ],
)
def test_other_layouts_of_compressed_tensors_are_left_to_transformers(
    settings: dict[str, Any],
) -> None:
    found = read_quantization({"quantization_config": CONFIGS["nvfp4"] | settings}, where="here")
    assert found is not None
    assert not found.is_decoded_here
