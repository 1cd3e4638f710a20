"""Which stored tensors are weights in float4 or float8, by what each is called and stored as.

One checkpoint may mix formats, so each tensor is judged by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.faults.scales import is_float8
from precheck.checkpoint.floats.float4 import Float4Linear, Mxfp4Experts
from precheck.checkpoint.floats.fp8 import fp8_linear
from precheck.checkpoint.packed import contradiction
from precheck.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.checkpoint.packed import PackedLinear
    from precheck.checkpoint.quantization import Quantization

_BLOCKS, _SCALES = "_blocks", "_scales"
_GROUP_SIZES = {"float8_e4m3fn": 16, "uint8": 32, "float8_e8m0fnu": 32}
"""Inputs that share a factor, by the factor's dtype: NVFP4 and MXFP4."""
_GLOBAL_SCALES = {"weight_packed": "weight_global_scale", "weight": "weight_scale_2"}
"""What NVFP4's factor for all is called, by what the numbers are called."""
_ADDED_TO_INPUTS = (".pre_quant_scale", ".weight_zero_point")
"""Parts that change a weight further, and that nothing here applies."""
_ORIGINAL = "scan the unquantised base model that it was made from"


def find_floats(
    stored: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], quantization: Quantization
) -> Iterator[tuple[str, PackedLinear]]:
    """What is packed, by the name that the model has for it.

    Args:
        stored: the shape of every stored tensor.
        dtypes: the torch name of its dtype.
        quantization: what the config names.

    Raises:
        CheckpointCorruptError: a part that is missing, or whose shape contradicts the others.
        UnsupportedModelError: a part that nothing here applies.
    """
    for name in stored:
        module, _, part = name.rpartition(".")
        if name.endswith(_ADDED_TO_INPUTS) or f"{name}_weight_scale" in stored:
            raise UnsupportedModelError(
                f"a layout of {quantization.method} that is not known: {name!r}", hint=_ORIGINAL
            )
        if name.endswith(_BLOCKS) and dtypes[name] == "uint8":
            yield name.removesuffix(_BLOCKS), _experts(name, stored, dtypes)
        elif part in _GLOBAL_SCALES and dtypes[name] == "uint8":
            yield f"{module}.weight", _float4(name, stored, dtypes)
        elif part == "weight" and is_float8(dtypes[name]) and f"{name}_scale" in stored:
            block_size = quantization.block_size
            yield name, fp8_linear(name, f"{name}_scale", stored, block_size=block_size)


def _float4(
    name: str, stored: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> Float4Linear:
    module, _, part = name.rpartition(".")
    scale = f"{module}.weight_scale"
    group_size = _group_size(scale, dtypes)
    global_scale = f"{module}.{_GLOBAL_SCALES[part]}" if group_size == 16 else None  # noqa: PLR2004
    if global_scale is not None and global_scale not in stored:
        raise contradiction(f"{global_scale} is missing")
    if global_scale is not None and stored[global_scale] not in {(), (1,)}:
        raise contradiction(f"{global_scale} is {stored[global_scale]}, not one number")
    if len(stored[name]) != 2:  # noqa: PLR2004
        raise contradiction(f"{name} is {stored[name]}, not a matrix")
    outputs, num_bytes = stored[name]
    _expect(scale, stored, (outputs, _num_groups(name, num_bytes * 2, group_size)))
    return Float4Linear(
        packed=name,
        scale=scale,
        global_scale=global_scale,
        is_divisor=part == "weight_packed",
        shape=(outputs, num_bytes * 2),
    )


def _experts(
    name: str, stored: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str]
) -> Mxfp4Experts:
    scale = f"{name.removesuffix(_BLOCKS)}{_SCALES}"
    if _group_size(scale, dtypes) != 32:  # noqa: PLR2004
        raise contradiction(f"{scale} is {dtypes[scale]} (expected uint8)")
    if len(stored[name]) != 4 or stored[name][-1] != 16:  # noqa: PLR2004
        raise contradiction(f"{name} is {stored[name]}, not (experts, outputs, groups, 16)")
    experts, outputs, groups, _ = stored[name]
    _expect(scale, stored, (experts, outputs, groups))
    return Mxfp4Experts(packed=name, scale=scale, shape=(experts, groups * 32, outputs))


def _group_size(scale: str, dtypes: Mapping[str, str]) -> int:
    """How many inputs share a factor of these."""
    dtype = dtypes.get(scale)
    if dtype is None:
        raise contradiction(f"{scale} is missing")
    if dtype not in _GROUP_SIZES:
        raise contradiction(f"{scale} is {dtype} (expected {' or '.join(_GROUP_SIZES)})")
    return _GROUP_SIZES[dtype]


def _num_groups(name: str, num_inputs: int, group_size: int) -> int:
    if num_inputs % group_size:
        raise contradiction(
            f"groups of {group_size} do not divide the {num_inputs} inputs of {name}"
        )
    return num_inputs // group_size


def _expect(scale: str, stored: Mapping[str, tuple[int, ...]], expected: tuple[int, ...]) -> None:
    if stored[scale] != expected:
        raise contradiction(f"{scale} is {stored[scale]}, but its weight needs {expected}")
