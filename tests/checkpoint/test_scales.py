"""Scales of packed weights: read in every form they come in, and missed where they are absent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

import precheck
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.faults.scales import unscaled_weights
from precheck.checkpoint.gallery import GALLERY
from precheck.checkpoint.quantization import Quantization, read_quantization
from precheck.errors import CheckpointCorruptError, UnsupportedModelError
from precheck.records.finding import Severity, Verdict
from tests.shell import change_config, change_weights
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precheck.records.finding import Finding
    from precheck.records.report import Report

NUM_INPUTS, NUM_OUTPUTS = 96, 64
pytestmark = pytest.mark.usefixtures("untraced")

BLOCK = 32
DOWN = "model.layers.1.mlp.down_proj"
FP8 = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}


# GPTQ


def words(integers: torch.Tensor, bits: int) -> torch.Tensor:
    """Packed along the first dimension: each column is one long number, cut into 32-bit words."""
    columns = []
    for column in integers.T.tolist():
        number = sum(each << (bits * index) for index, each in enumerate(column))
        count = -(-len(column) * bits // 32)
        columns.append([(number >> (32 * index)) & 0xFFFFFFFF for index in range(count)])
    return torch.tensor(columns).T.to(torch.int32).contiguous()


@pytest.mark.parametrize("is_ordered", [False, True], ids=["plain", "desc_act"])
@pytest.mark.parametrize("group_size", [-1, 32, NUM_INPUTS])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2"])
def test_gptq_with_every_number_of_groups(
    layout: str, bits: int, group_size: int, is_ordered: bool, tmp_path: Path
) -> None:
    """What is expected is ``scale * (integer - zero)`` of the numbers drawn, in float32."""
    generator = torch.Generator().manual_seed(bits)
    size = NUM_INPUTS if group_size == -1 else group_size
    groups = torch.arange(NUM_INPUTS) // size
    if is_ordered:
        groups = groups[torch.randperm(NUM_INPUTS, generator=generator)]
    num_groups = NUM_INPUTS // size
    integers = torch.randint(0, 2**bits, (NUM_INPUTS, NUM_OUTPUTS), generator=generator)
    zeros = torch.randint(1, 2**bits, (num_groups, NUM_OUTPUTS), generator=generator)
    scales = (torch.rand(num_groups, NUM_OUTPUTS, generator=generator) + 0.01).half()
    stored_zeros = zeros - int(layout == "gptq")
    save_file(
        {
            "a.qweight": words(integers, bits),
            "a.qzeros": words(stored_zeros.T.contiguous(), bits).T.contiguous(),
            "a.scales": scales,
            "a.g_idx": groups.int(),
        },
        tmp_path / "model.safetensors",
    )
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": is_ordered,
        "checkpoint_format": layout,
    }
    quantization = read_quantization({"quantization_config": settings}, where="here")
    assert quantization is not None
    expected = (scales.float()[groups] * (integers - zeros[groups]).float()).T
    with DecodedWeights([tmp_path / "model.safetensors"], quantization) as weights:
        assert torch.equal(weights["a.weight"], expected)
        buffer = torch.empty(weights.nbytes("a.weight"), dtype=torch.uint8)
        rows = slice(7, 40)
        assert torch.equal(weights.read_rows_into("a.weight", rows, buffer), expected[rows])


def zero_scales(of: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(".scales") and of in name:
                tensor.zero_()

    return change


@pytest.mark.parametrize("of", ["model.layers.1.mlp.up_proj", ".up_proj", ""])
def test_scales_that_are_all_zero_are_an_error(of: str, tmp_path: Path) -> None:
    """Also where they are in every layer: by design weights are zero, scales never."""
    GALLERY["qwen2.5-gptq"].build(tmp_path, is_planted=False)
    change_weights(tmp_path, zero_scales(of))
    found = finding(scanned(tmp_path), "PC512")
    assert found.severity is Severity.ERROR
    assert "All scales are zero" in found.message
    assert "model.layers.1.mlp.up_proj.weight" in found.modules


def test_packed_weights_without_their_config_are_one_finding(tmp_path: Path) -> None:
    GALLERY["qwen2.5-gptq"].build(tmp_path, is_planted=False)
    change_config(tmp_path, quantization_config=None)
    report = scanned(tmp_path)
    found = finding(report, "PC511")
    assert "config.json has no quantization_config" in found.message
    assert f"{DOWN}.qweight" in found.modules
    assert not {"PC501", "PC505"} & {each.code for each in report.findings}


# FP8


def in_float8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The weight in float8, and what a block of it was divided by."""
    height, width = (-(-size // BLOCK) for size in weight.shape[-2:])
    factors = torch.zeros(*weight.shape[:-2], height, width)
    for row in range(height):
        for column in range(width):
            block = weight[
                ..., row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK
            ]
            factors[..., row, column] = block.abs().amax(dim=(-2, -1)) / 448.0
    spread = factors.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)
    divided = weight / spread[..., : weight.shape[-2], : weight.shape[-1]]
    return divided.to(torch.float8_e4m3fn), factors


def decoded(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> DecodedWeights:
    save_file(tensors, folder / "model.safetensors")
    quantization = read_quantization({"quantization_config": {**FP8, **settings}}, where="here")
    assert quantization is not None
    return DecodedWeights([folder / "model.safetensors"], quantization)


def exponents(factors: torch.Tensor) -> torch.Tensor:
    """As MXFP8 stores them: a byte, 127 for one."""
    return (factors.log2() + 127).to(torch.uint8)


@pytest.mark.parametrize("name", ["a.weight_scale_inv", "a.scale", "a.qscale_weight"])
@pytest.mark.parametrize(
    "stored",
    [torch.Tensor.float, torch.Tensor.bfloat16, lambda each: each.to(torch.float8_e8m0fnu),
     exponents],
    ids=["float32", "bfloat16", "float8_e8m0fnu", "uint8"],
)  # fmt: skip
def test_fp8_scales_of_every_name_and_dtype(
    name: str, stored: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    """Compared with transformers; the factors are powers of two, which all of these dtypes hold."""
    torch.manual_seed(0)
    weight = (torch.randn(64, 96) * 100).to(torch.float8_e4m3fn)
    factors = 2.0 ** torch.randint(-8, 8, (2, 3)).float()
    with decoded(tmp_path, {"a.weight": weight, name: stored(factors)}) as weights:
        assert list(weights) == ["a.weight"]
        ours = weights["a.weight"]
    theirs = Fp8Dequantize(None)._dequantize_one(weight, stored(factors), torch.float32)  # noqa: SLF001
    assert torch.equal(ours, theirs)
    assert torch.equal(
        ours, weight.float() * factors.repeat_interleave(32, 0).repeat_interleave(32, 1)
    )


def test_experts_in_one_tensor_are_decoded_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, factors = in_float8(torch.randn(5, 40, 64))
    tensors = {"experts.up": weight, "experts.up_scale_inv": factors}
    expected = weight.float() * factors.repeat_interleave(32, 1)[:, :40].repeat_interleave(32, 2)
    with decoded(tmp_path, tensors) as weights:
        assert torch.equal(weights["experts.up"], expected)
        buffer = torch.empty(weights.nbytes("experts.up"), dtype=torch.uint8)
        for rows in (slice(1, 3), [4, 0]):
            part = weights.read_rows_into("experts.up", rows, buffer)
            assert torch.equal(part, expected[rows])


@pytest.mark.parametrize("shape", [(), (1,), (64, 1), (1, 1)])
def test_scales_of_rows_or_of_all_need_no_block_size(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    weight = torch.randn(64, 96).to(torch.float8_e4m3fn)
    factors = torch.rand(shape) + 0.5
    tensors = {"a.weight": weight, "a.weight_scale_inv": factors}
    with decoded(tmp_path, tensors, weight_block_size=None) as weights:
        assert torch.equal(weights["a.weight"], weight.float() * factors)


def test_what_contradicts_the_format_is_refused(tmp_path: Path) -> None:
    factors = torch.ones(2, 3)
    with pytest.raises(UnsupportedModelError, match=r"FP8 weight in int8: 'a.weight'"):
        decoded(tmp_path, {"a.weight": torch.ones(64, 96).char(), "a.weight_scale_inv": factors})
    with pytest.raises(CheckpointCorruptError, match="has no weight matrix"):
        decoded(tmp_path, {"a.weight_scale_inv": factors})
    few = {"a.weight": torch.ones(64, 96).to(torch.float8_e4m3fn), "a.scale": torch.ones(1, 3)}
    with pytest.raises(CheckpointCorruptError, match="in blocks of 32 x 32 needs"):
        decoded(tmp_path, few)


# Checkpoints


def fp8_model(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A tiny model in fine-grained FP8, after ``change``."""
    save_checkpoint(tiny("qwen2", num_layers=3), folder, tokenizer=False)

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in [each for each in tensors if each.endswith("proj.weight")]:
            tensors[name], tensors[f"{name}_scale_inv"] = in_float8(tensors[name])
        change(tensors)

    change_weights(folder, quantise)
    change_config(folder, quantization_config=FP8)
    return folder


def scanned(folder: Path, **options: Any) -> Report:
    return precheck.scan(
        str(folder), quick=True, dtypes=["float32"], attn_implementations=["sdpa"], **options
    )


def finding(report: Report, code: str) -> Finding:
    (found,) = (each for each in report.findings if each.code == code)
    return found


def stored_findings(report: Report) -> list[str]:
    return [each.code for each in report.findings if each.code.startswith("PC5")]


def test_a_healthy_fp8_checkpoint_is_the_model_it_was_made_of(tmp_path: Path) -> None:
    report = scanned(fp8_model(tmp_path, lambda _: None))
    assert stored_findings(report) == []
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


@pytest.mark.parametrize("is_static", [False, True], ids=["run", "static"])
def test_a_lost_scale_names_its_weight(is_static: bool, tmp_path: Path) -> None:
    def lose(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[f"{DOWN}.weight_scale_inv"]

    folder = fp8_model(tmp_path, lose)
    report = precheck.scan(str(folder), static=True, full=True) if is_static else scanned(folder)
    found = finding(report, "PC511")
    assert (found.severity, found.modules) == (Severity.ERROR, (f"{DOWN}.weight",))
    assert "No scale is stored for them" in found.message
    assert report.recommendation is not None
    assert is_static or report.recommendation.dtype is None


def rename_scales(tensors: dict[str, torch.Tensor]) -> None:
    """To what compressed-tensors calls them."""
    for name in [each for each in tensors if each.endswith("_scale_inv")]:
        tensors[name.removesuffix("_inv")] = tensors.pop(name)


def test_scales_under_a_name_that_the_format_does_not_read(tmp_path: Path) -> None:
    found = finding(scanned(fp8_model(tmp_path, rename_scales)), "PC511")
    assert len(found.modules) == 3 * 7
    assert "config.json names fp8, whose scales have other names" in found.message


@pytest.mark.parametrize("has_scales", [True, False])
def test_float8_without_a_quantization_config(has_scales: bool, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [each for each in tensors if each.endswith("_scale_inv")]:
            scale = tensors.pop(name)
            if has_scales:
                tensors[name.removesuffix("_inv")] = scale

    folder = fp8_model(tmp_path, change)
    change_config(folder, quantization_config=None)
    report = scanned(folder)
    found = finding(report, "PC511")
    assert (found.severity, len(found.modules)) == (Severity.ERROR, 3 * 7)
    says = "config.json has no quantization_config" if has_scales else "No scale is stored"
    assert says in found.message
    assert stored_findings(report).count("PC505") == 0


def test_scales_beside_plain_weights_are_an_error(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2", num_layers=3), tmp_path, tokenizer=False)
    scale = torch.ones(4, 1)
    change_weights(tmp_path, lambda tensors: tensors.update({f"{DOWN}.weight_scale": scale}))
    found = finding(scanned(tmp_path), "PC511")
    assert (found.severity, found.modules) == (Severity.ERROR, (f"{DOWN}.weight_scale",))


def test_scales_of_what_the_model_does_not_take_are_not(tmp_path: Path) -> None:
    """Those of the cache, and those of a layer that this model has no place for."""
    save_checkpoint(tiny("qwen2", num_layers=3), tmp_path, tokenizer=False)
    extra = {
        "model.layers.1.self_attn.k_scale": torch.ones(1),
        "model.layers.7.mlp.down_proj.weight": torch.ones(4, 4),
        "model.layers.7.mlp.down_proj.weight_scale": torch.ones(4, 1),
    }
    change_weights(tmp_path, lambda tensors: tensors.update(extra))
    assert stored_findings(scanned(tmp_path)) == ["PC505"]


def method(name: str | None) -> Quantization | None:
    return None if name is None else Quantization(method=name)


@pytest.mark.parametrize(
    ("quantised", "weight", "dtype", "scale"),
    [
        ("compressed-tensors", "a.weight", "float8_e4m3fn", "a.weight_scale"),
        ("compressed-tensors", "a.weight", "int8", "a.weight_scale"),
        ("compressed-tensors", "a.weight_packed", "int32", "a.weight_scale"),
        ("bitsandbytes", "a.weight", "uint8", "a.weight.absmax"),
        ("bitsandbytes", "a.weight", "int8", "a.SCB"),
    ],
)
def test_every_format_needs_its_scale(quantised: str, weight: str, dtype: str, scale: str) -> None:
    healthy = {weight: dtype, scale: "float32", "a.bias": "bfloat16", "b.weight": "bfloat16"}
    packed = method(quantised)
    assert list(unscaled_weights(healthy, packed, decoded_from=())) == []
    assert list(unscaled_weights(healthy, None, decoded_from=())) == [weight]
    del healthy[scale]
    assert list(unscaled_weights(healthy, packed, decoded_from=())) == [weight]


def test_scales_in_float8_need_none_themselves() -> None:
    """NVFP4 has them, and a second scale for all of them."""
    stored = {
        "a.weight_packed": "uint8",
        "a.weight_scale": "float8_e4m3fn",
        "a.weight_global_scale": "float32",
    }
    packed = method("compressed-tensors")
    assert list(unscaled_weights(stored, packed, decoded_from=())) == []


def test_no_stored_dtype_is_taken_for_another(tmp_path: Path) -> None:
    """What reading gives is what safetensors gives, for each float8 that torch has."""
    numbers = torch.tensor([[0.5, 1.0, 2.0, 4.0]])
    stored = {
        str(dtype): numbers.to(dtype)
        for dtype in (
            *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz),
            *(torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
        )
    }
    save_file(stored, tmp_path / "model.safetensors")
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name].float(), numbers) for name in stored)
