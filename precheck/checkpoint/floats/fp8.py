"""Weights in float8 with a factor for each block: which of the stored tensors belong together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from precheck.checkpoint.faults.scales import FP8_SCALE, fp8_scales, is_float8
from precheck.checkpoint.packed import Fp8Linear, contradiction
from precheck.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.checkpoint.quantization import Quantization


def find_fp8(
    stored: Mapping[str, tuple[int, ...]], dtypes: Mapping[str, str], quantization: Quantization
) -> Iterator[tuple[str, Fp8Linear]]:
    """What has a scale; weights in float8 that have none are left as they are.

    Raises:
        CheckpointCorruptError: shapes that contradict each other or the settings.
        UnsupportedModelError: a scale of a weight that is not in float8.
    """
    for name in stored:
        scale = next((scale for scale in fp8_scales(name) if scale in stored), None)
        if scale is None:
            if name.endswith(FP8_SCALE) and name.removesuffix(FP8_SCALE) not in stored:
                raise contradiction(f"{name} has no weight matrix")
        elif is_float8(dtypes[name]):
            yield name, fp8_linear(name, scale, stored, block_size=quantization.block_size)
        elif scale.endswith(FP8_SCALE):
            raise UnsupportedModelError(
                f"FP8 weight in {dtypes[name]}: {name!r}, with {scale!r} (expected float8)",
                hint="scan the unquantised base model that it was made from",
            )


def fp8_linear(
    name: str,
    scale: str,
    stored: Mapping[str, tuple[int, ...]],
    *,
    block_size: tuple[int, int] | None,
) -> Fp8Linear:
    """The weight ``name``, stored with factors ``scale``.

    Args:
        name: of a tensor ``(..., out, in)``.
        scale: of its factors: one, or one for each row or block.
        stored: all shapes.
        block_size: as the config names it; None where the number of factors says it.

    Raises:
        CheckpointCorruptError: there are more or fewer factors than blocks.
    """
    shape, factors = stored[name], stored[scale]
    if len(shape) < 2:  # noqa: PLR2004
        raise contradiction(f"{scale} has no weight matrix")
    *experts, rows, columns = shape
    height, width = block_size or _whole_blocks(shape, factors)
    blocks = (*experts, -(-rows // height), -(-columns // width))
    is_one = math.prod(factors) == math.prod(blocks) == 1  # in whatever dimensions
    if factors != blocks and not is_one:
        raise contradiction(
            f"{scale} is {factors}, but a weight of {shape} in blocks of {height} x {width} needs "
            f"{blocks}"
        )
    return Fp8Linear(name=name, scale=scale, shape=shape, block_size=(height, width))


def _whole_blocks(shape: tuple[int, ...], factors: tuple[int, ...]) -> tuple[int, int]:
    """The block size that the number of factors implies, where the config names none."""
    rows, columns = shape[-2:]
    is_grid = len(factors) == len(shape) and 0 not in factors
    if not is_grid or rows % factors[-2] or columns % factors[-1]:
        return rows, columns
    return rows // factors[-2], columns // factors[-1]
