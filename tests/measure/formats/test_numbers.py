"""What storing a tensor makes of it: scales, groups, rotations, limits, and what was lost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import Fp8QuantizedLayer

from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS, Granularity, Numbers, Scale
from precheck.measure.formats.numbers import as_stored, edges, losses
from precheck.measure.formats.super_blocks import divided

if TYPE_CHECKING:
    from torch import Tensor

PARTS: dict[str, Numbers | None] = {
    **{f"{row.name}.weights": row.weights for row in WEIGHT_FORMATS.values()},
    **{f"{row.name}.activations": row.activations for row in WEIGHT_FORMATS.values()},
    **{f"{row.name}.keys": row.keys for row in CACHE_FORMATS.values()},
    **{f"{row.name}.values": row.values for row in CACHE_FORMATS.values()},
}
NAMES = {numbers: name for name, numbers in PARTS.items() if numbers is not None}
ALL = {name: numbers for numbers, name in NAMES.items()}
"""Each once, by one of its names."""
SCALED = [name for name, numbers in ALL.items() if numbers.scale is not Scale.UNIT]
SHARED = [
    name
    for name in SCALED
    if ALL[name].granularity in {Granularity.TENSOR, Granularity.BLOCK}
    or ALL[name].has_global_scale
]
"""One scale for many rows."""
finite = st.floats(width=32, allow_nan=False, min_value=-(2.0**16), max_value=2.0**16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("name", ALL)
def test_shape_and_dtype_stay_and_the_argument_too(name: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        # neither 80 nor 5 fills groups
        for shape in ((1, 2, 5, 80), (1, 2, 5, 128)):
            tensor = drawn(*shape).to(dtype)
            before = tensor.clone()
            stored = as_stored(tensor, ALL[name])
            assert stored.shape == tensor.shape
            assert stored.dtype == dtype
            assert torch.equal(tensor, before)
            assert stored.isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_16_bits_are_rounded_once_from_what_float32_gives(name: str) -> None:
    tensor = drawn(2, 3, 4, 256).bfloat16()
    in_float32 = as_stored(tensor.float(), ALL[name])
    assert torch.equal(as_stored(tensor, ALL[name]), in_float32.bfloat16())


@pytest.mark.parametrize("name", [name for name in ALL if name not in SHARED])
def test_a_slice_is_stored_as_in_the_whole_tensor(name: str) -> None:
    numbers = ALL[name]
    tensor = drawn(2, 3, 7, 256)
    whole = as_stored(tensor, numbers)
    assert torch.equal(as_stored(tensor[:, 1:2, 3:5], numbers), whole[:, 1:2, 3:5])
    assert torch.equal(as_stored(tensor.transpose(1, 2), numbers), whole.transpose(1, 2))


@pytest.mark.parametrize("name", ALL)
def test_zeros_stay_zeros_beside_large_numbers_or_alone(name: str) -> None:
    assert (as_stored(torch.zeros(2, 3, 4, 256), ALL[name]) == 0).all()
    tensor = drawn(2, 3, 4, 256)
    tensor[0, 0, 0] = 0
    assert (as_stored(tensor, ALL[name])[0, 0, 0] == 0).all()
    tensor[0, 0, 1, ::2] = 0
    tensor[0, 0, 1, 1::2] = 1e-40  # a dead channel
    assert (as_stored(tensor, ALL[name])[0, 0, 1] < 1e-30).all()


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_a_number_is_not_hidden(name: str) -> None:
    tensor = drawn(1, 2, 3, 256)
    tensor[0, 1, 2, 5] = math.nan
    assert as_stored(tensor, ALL[name])[0, 1, 2, 5].isnan()
    tensor[0, 1, 2, 5] = math.inf
    stored = as_stored(tensor, ALL[name])[0, 1, 2, 5].item()
    clips = ALL[name].scale is Scale.UNIT and ALL[name].saturates
    assert stored == ALL[name].element.max if clips else not math.isfinite(stored)


@pytest.mark.parametrize("name", SCALED)
@settings(max_examples=20)
@given(st.lists(finite, min_size=64, max_size=64))
def test_no_number_is_farther_than_half_a_step_unless_it_was_clipped(
    name: str, values: list[float]
) -> None:
    """The steps are those of the largest magnitude, the widest there are."""
    numbers = ALL[name]
    tensor = torch.tensor(values, dtype=torch.float32).reshape(1, 64)
    error = (as_stored(tensor, numbers) - tensor).abs().max().item()
    amax = tensor.abs().max().item()
    # the coarsest step beside the largest magnitude: that of E2M1 and of E4M3 is coarser than 1
    coarsest = {4: 2 / 6, 5: 1 / 15, 6: 1 / 31, 8: 32 / 448}[numbers.element.num_bits]
    clipped = 1 if numbers.scale is Scale.SIGNED_AMAX else 0
    bound = amax * (coarsest / 2 + clipped / 8 + 0.07)
    if numbers.rotation is not None:
        bound *= 8  # an orthogonal matrix keeps the norm, and 64 numbers share it
    assert error <= bound + 1e-4


def per_head(row: np.ndarray, highest: float, rounding: str) -> np.ndarray:
    """vLLM's kernel for one token and head, in float32 operation for operation."""
    one = np.float32(1)
    scale = max(np.abs(row).max() / np.float32(highest), np.float32(1e-6))
    codes = row * (one / scale)
    if rounding == "away":
        codes = np.trunc(np.where(codes >= 0, codes + np.float32(0.5), codes - np.float32(0.5)))
        codes = np.clip(codes, -128, 127)
    else:
        codes = torch.from_numpy(np.clip(codes, -448, 448)).to(torch.float8_e4m3fn).float().numpy()
    return codes * scale


@pytest.mark.parametrize(
    ("name", "highest", "rounding"),
    [("int8", 127.0, "away"), ("fp8_per_token_head", 448.0, "even")],
)
def test_each_token_and_head_is_stored_as_the_kernel_of_vllm_does(
    name: str, highest: float, rounding: str
) -> None:
    tensor = drawn(2, 3, 5, 64).bfloat16().float()
    tensor[0, 0, 0] *= 1e-7  # below the smallest scale
    expected = np.stack(
        [per_head(row, highest, rounding) for row in tensor.reshape(-1, 64).numpy()]
    ).reshape(tensor.shape)
    assert torch.equal(as_stored(tensor, CACHE_FORMATS[name].keys), torch.from_numpy(expected))


def test_a_calibrated_scale_is_that_of_transformers() -> None:
    tensor = drawn(1, 2, 9, 64).bfloat16()
    layer = Fp8QuantizedLayer()
    layer.lazy_initialization(tensor, tensor)
    stored = layer._dequantize(layer._quantize(tensor))  # noqa: SLF001  nothing public gives it
    assert torch.equal(as_stored(tensor, CACHE_FORMATS["fp8_e4m3_calibrated"].keys), stored)


@pytest.mark.parametrize("name", ["q8_0", "q5_0", "q4_0"])
@given(st.lists(finite, min_size=64, max_size=64))
def test_blocks_are_those_of_gguf(name: str, values: list[float]) -> None:
    row = np.array([values], dtype=np.float32)
    row[np.abs(row) < 1e-30] = 0  # a cast of Inf to an integer, which C leaves open
    kind = gguf.GGMLQuantizationType[name.upper()]
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(gguf.quantize(row, kind), kind)
    stored = as_stored(torch.from_numpy(row), WEIGHT_FORMATS[name].weights).numpy()
    np.testing.assert_array_equal(stored, expected)


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_a_cache_that_is_not_rotated_is_stored_as_weights_are(name: str) -> None:
    cache = CACHE_FORMATS[f"{name}_unrotated"]
    assert cache.keys == cache.values == WEIGHT_FORMATS[name].weights


@pytest.mark.parametrize(("name", "instead"), [("q4_k", "q5_0"), ("q6_k", "q8_0")])
def test_rows_that_no_super_block_fills_are_stored_in_another_format(
    name: str, instead: str
) -> None:
    searched, simple = WEIGHT_FORMATS[name].weights, WEIGHT_FORMATS[instead].weights
    odd, whole = drawn(3, 576), drawn(3, 512)
    assert torch.equal(as_stored(odd, searched), as_stored(odd, simple))
    assert not torch.equal(as_stored(whole, searched), as_stored(whole, simple))


def test_a_number_is_divided_as_c_divides_it() -> None:
    """Rounded once: a search in K-quants ends elsewhere after one other ulp."""
    tensor = drawn(1000)
    assert np.array_equal(divided(63, tensor).numpy(), np.float32(63) / tensor.numpy())


def test_a_searched_scale_loses_less_than_that_of_the_extremes() -> None:
    tensor = drawn(8, 512)
    lost = {name: losses(tensor, WEIGHT_FORMATS[name].weights) for name in ("q4_0", "q4_k")}
    assert lost["q4_k"].rounding < lost["q4_0"].rounding


def hadamard(width: int) -> Tensor:
    """Sylvester's, in float64."""
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix / math.sqrt(width)


@pytest.mark.parametrize(
    ("part", "head_dim", "width"), [("keys", 128, 128), ("keys", 192, 64), ("values", 128, 64)]
)
def test_llama_cpp_stores_what_a_hadamard_matrix_makes(
    part: str, head_dim: int, width: int
) -> None:
    tensor = drawn(1, 2, 6, head_dim)
    matrix = torch.block_diag(*[hadamard(width)] * (head_dim // width))
    rotated = (tensor.double() @ matrix).float()
    plain: Numbers = getattr(CACHE_FORMATS["q8_0_unrotated"], part)
    expected = as_stored(rotated, plain).double() @ matrix
    stored = as_stored(tensor, getattr(CACHE_FORMATS["q8_0"], part)).double()
    # one more ulp before rounding can take a number to the next integer, here and there
    close = (stored - expected).abs() < 1e-5
    assert close.all(-1).double().mean() > 0.7
    assert (stored - expected).norm() < 0.1 * (stored - tensor).norm()


def test_a_rotation_saves_the_neighbours_of_an_outlier_and_needs_whole_vectors() -> None:
    tensor = drawn(1, 1, 50, 64)
    tensor[..., 3] = 300.0
    plain, rotated = (CACHE_FORMATS[name].keys for name in ("q4_0_unrotated", "q4_0"))
    assert losses(tensor, rotated).rounding < losses(tensor, plain).rounding * 2
    others = [index for index in range(64) if index != 3]
    errors = [
        (as_stored(tensor, numbers) - tensor)[..., others].norm() for numbers in (plain, rotated)
    ]
    assert errors[1] < errors[0]
    short = drawn(1, 1, 4, 80)
    assert torch.equal(as_stored(short, rotated), as_stored(short, plain))


def test_clipping_and_rounding_are_told_apart() -> None:
    tensor = drawn(1, 2, 8, 128).clamp(-10, 10)
    unit, calibrated = (CACHE_FORMATS[name].values for name in ("fp8_e4m3", "fp8_e4m3_calibrated"))
    sound = losses(tensor, unit)
    assert sound.clipped_share == 0
    assert 0.01 < sound.rounding < 0.05
    tensor[0, 0, 0, :4] = torch.tensor([449.0, 464.0, 465.0, -1272.0])
    clipped = losses(tensor, unit)
    assert clipped.clipped_share == 2 / tensor.numel()
    assert clipped.rounding < 0.05
    assert losses(tensor, calibrated).clipped_share == 0


def test_a_scale_that_was_calibrated_clips_what_calibration_did_not_see() -> None:
    tensor = drawn(1, 2, 8, 128)
    calibrated = CACHE_FORMATS["fp8_e4m3_calibrated"].keys
    amax = tensor.abs().max().item()
    assert torch.equal(
        as_stored(tensor, calibrated, calibrated_amax=amax), as_stored(tensor, calibrated)
    )
    # a slice is stored as in the whole tensor
    assert torch.equal(
        as_stored(tensor[:, 1:], calibrated, calibrated_amax=amax),
        as_stored(tensor, calibrated)[:, 1:],
    )
    assert as_stored(tensor, calibrated, calibrated_amax=1.0).abs().max() == 1.0
    lost = losses(tensor, calibrated, calibrated_amax=1.0)
    assert lost.clipped_share == (tensor.abs() > 464 / 448).double().mean().item()
    # NVFP4 holds 6 times 448 times its scale of the tensor
    blocks = WEIGHT_FORMATS["nvfp4"].weights
    assert as_stored(tensor, blocks, calibrated_amax=1.0).abs().max() == 1.0
    # 448 times a scale of 1.0 in a checkpoint
    unit = CACHE_FORMATS["fp8_e4m3"].keys
    assert torch.equal(
        as_stored(tensor, calibrated, calibrated_amax=448.0), as_stored(tensor, unit)
    )


def test_a_large_offset_is_lost_by_rounding_and_no_scale_cures_it() -> None:
    """The bias of Qwen2's keys: 1 part in 16 of 300 is more than the rest of the channel."""
    tensor = drawn(1, 2, 64, 128) / 3
    tensor[..., 5] += 300
    for name in ("fp8_e4m3", "fp8_e4m3_calibrated"):
        stored = as_stored(tensor, CACHE_FORMATS[name].keys)
        assert (stored - tensor)[..., 5].std() > 0.8
        assert losses(tensor, CACHE_FORMATS[name].keys).clipped_share == 0


def test_edges_are_half_a_step_beyond_the_largest_number() -> None:
    for name, highest in (("fp8_e4m3", 464.0), ("fp8_e4m3fnuz", 248.0), ("fp8_e5m2", 61440.0)):
        assert edges(CACHE_FORMATS[name].keys) == (-highest, highest)
    sound = drawn(4, 256)
    for row in WEIGHT_FORMATS.values():
        share = losses(sound, row.weights).clipped_share
        # beside the largest magnitude, which is stored, one as large of the other sign is not
        may_clip = row.weights.scale in {Scale.SIGNED_AMAX, Scale.SEARCHED, Scale.SEARCHED_MIN_MAX}
        assert share < 0.02 if may_clip else share == 0


def test_a_block_does_not_hear_of_its_neighbours() -> None:
    numbers = WEIGHT_FORMATS["fp8_block"].weights
    tensor = drawn(200, 300)
    loud = tensor.clone()
    loud[0, 0] = 1e5
    quiet, changed = as_stored(tensor, numbers), as_stored(loud, numbers)
    assert not torch.equal(quiet[:128, :128], changed[:128, :128])
    assert torch.equal(quiet[128:], changed[128:])
    assert torch.equal(quiet[:, 128:], changed[:, 128:])
