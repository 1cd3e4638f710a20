"""Q4_K and Q6_K: real blocks are written here, and the package gguf reads them back.

Nothing of the package is used. Which scales are tried, which error decides and what a block looks
like is that of ``ggml/src/ggml-quants.c`` of llama.cpp, without an importance matrix; sums run in
order in float32, as they do there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    Floats = NDArray[np.float32]
    Bytes = NDArray[np.uint8]

NUM_IN_BLOCK = 256
NUM_ROWS = 2048
"""Blocks at a time, for the sake of memory."""
NONE = 1e-15
"""A group below it is stored as zeros."""


def total(terms: Floats) -> Floats:
    """Over the first dimension, one row after the other."""
    return np.add.reduce(terms, axis=0, keepdims=True)


def quotient(numerator: Floats | float, denominator: Floats) -> Floats:
    """Zero where there is nothing to divide by."""
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float32), denominator)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


# Q4_K: eight groups of 32, each with a scale and what is subtracted, both in 6 bits.


def line_through(groups: Floats) -> tuple[Floats, Floats]:
    """Of every group ``(32, ...)`` the scale and what is subtracted: the best of 22 fits."""
    weights = np.sqrt(total(groups * groups) / np.float32(32)) + np.abs(groups)
    sum_w, sum_x = total(weights), total(weights * groups)
    low = np.minimum(groups.min(0, keepdims=True), np.float32(0))
    high = groups.max(0, keepdims=True)
    is_flat, flat = high == low, low
    scale = quotient(1, quotient(15, high - low))
    levels = np.clip(np.rint(quotient(15, high - low) * (groups - low)), 0, 15)
    least = total(weights * (scale * levels + low - groups) ** 2)
    for number in range(21):
        wide = float(np.float32(number) * np.float32(0.1) - np.float32(1) + np.float32(15))
        # from the best start so far
        levels = np.clip(np.rint(quotient(wide, high - low) * (groups - low)), 0, 15)
        sum_l, sum_l2 = total(weights * levels), total(weights * levels * levels)
        sum_xl = total(weights * levels * groups)
        size = sum_w * sum_l2 - sum_l * sum_l
        slope = quotient(sum_w * sum_xl - sum_x * sum_l, size)
        start = quotient(sum_l2 * sum_x - sum_l * sum_xl, size)
        slope = np.where(start > 0, quotient(sum_xl, sum_l2), slope)
        start = np.minimum(start, np.float32(0))
        error = total(weights * (slope * levels + start - groups) ** 2)
        better = (size > 0) & (error < least)
        least = np.where(better, error, least)
        scale, low = np.where(better, slope, scale), np.where(better, start, low)
    return np.where(is_flat, np.float32(0), scale), -np.where(is_flat, flat, low)


def packed_in_6_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Twelve bytes: six bits of the first four of both, then four bits of the others, whose upper
    two fill the first eight bytes."""
    first = [scales[:, :4] | (scales[:, 4:] >> 4) << 6, minima[:, :4] | (minima[:, 4:] >> 4) << 6]
    return np.concatenate([*first, (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4], axis=1)


def q4_k_blocks(rows: Floats) -> Bytes:
    """``(blocks, 256)`` as ``(blocks, 144)``."""
    groups = rows.reshape(-1, 8, 32)
    codes, halves = [], []
    for fitted in line_through(np.ascontiguousarray(groups.transpose(2, 0, 1))):
        numbers = fitted[0]
        largest = np.maximum(numbers.max(axis=1, keepdims=True), np.float32(0))
        whole = np.rint(quotient(63, largest) * numbers)
        codes.append(np.minimum(whole, 63).astype(np.uint8))
        halves.append((largest / np.float32(63)).astype(np.float16))
    scale, low = (
        (half.astype(np.float32) * code.astype(np.float32))[..., None]
        for half, code in zip(halves, codes, strict=True)
    )
    levels = np.clip(np.rint(quotient(groups + low, scale)), 0, 15)
    pairs = levels.astype(np.uint8).reshape(-1, 4, 2, 32)
    return np.concatenate(
        [
            *(half.view(np.uint8).reshape(-1, 2) for half in halves),
            packed_in_6_bits(*codes),
            (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128),
        ],
        axis=1,
    )


# Q6_K: sixteen groups of 16, each with a scale in 8 bits.


def scale_of(groups: Floats) -> Floats:
    """Of every group ``(16, ...)``: the best of 19 weighted fits."""
    where = np.abs(groups).argmax(0)[None]
    largest = np.take_along_axis(groups, where, axis=0)
    weights = groups * groups
    scale, best = np.zeros_like(largest), np.zeros_like(largest)
    for number in (0, *range(-9, 0), *range(1, 10)):
        wide = float(np.float32(number) * np.float32(0.1) + np.float32(32))
        levels = np.clip(np.rint(quotient(-wide, largest) * groups), -32, 31)
        sum_xl = total(weights * groups * levels)
        sum_l2 = total(weights * levels * levels)
        better = (sum_l2 > 0) & (sum_xl * sum_xl > best * sum_l2)
        scale = np.where(better, quotient(sum_xl, sum_l2), scale)
        best = np.where(better, scale * sum_xl, best)
    return np.where(np.abs(largest) < NONE, np.float32(0), scale)


def q6_k_blocks(rows: Floats) -> Bytes:
    """``(blocks, 256)`` as ``(blocks, 210)``."""
    groups = rows.reshape(-1, 16, 16)
    scales = scale_of(np.ascontiguousarray(groups.transpose(2, 0, 1)))[0]
    where = np.abs(scales).argmax(-1)[:, None]
    inverse = quotient(-128, np.take_along_axis(scales, where, axis=1))
    half = quotient(1, inverse).astype(np.float16)
    codes = np.minimum(np.rint(inverse * scales), 127).astype(np.int8)
    steps = (half.astype(np.float32) * codes.astype(np.float32))[..., None]
    levels = np.rint(quotient(groups, steps))
    stored = (np.clip(levels, -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low, high = stored & 15, stored >> 4
    upper = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.concatenate(
        [
            (low[:, :, :2] | low[:, :, 2:] << 4).reshape(-1, 128),
            upper.reshape(-1, 64),
            codes.view(np.uint8),
            half.view(np.uint8).reshape(-1, 2),
        ],
        axis=1,
    )


def read_back(
    kind: gguf.GGMLQuantizationType, blocks: Callable[[Floats], Bytes], rows: Tensor
) -> Tensor:
    """What is read of ``(outputs, inputs)``; inputs fill blocks of 256."""
    values = rows.contiguous().numpy().reshape(-1, NUM_IN_BLOCK)
    parts = [
        gguf.dequantize(blocks(values[start : start + NUM_ROWS]), kind)
        for start in range(0, len(values), NUM_ROWS)
    ]
    return torch.from_numpy(np.concatenate(parts).reshape(rows.shape))


def q4_k(rows: Tensor) -> Tensor:
    return read_back(gguf.GGMLQuantizationType.Q4_K, q4_k_blocks, rows)


def q6_k(rows: Tensor) -> Tensor:
    return read_back(gguf.GGMLQuantizationType.Q6_K, q6_k_blocks, rows)
