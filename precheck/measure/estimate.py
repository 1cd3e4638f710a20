"""How long a scan will take, before it starts."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.records.precision import Arithmetic, Dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.measure.models.skeleton import Skeleton

_ROWS, _SIZE = 256, 1024


def estimate_seconds(
    *, num_parameters: int, num_tokens: int, skeletons: Iterable[Skeleton], device: str
) -> float:
    """Seconds of matrix products in all runs; the rest of a forward takes little time.

    Every parameter takes part in one multiplication and one addition for every token. The speed of
    each dtype is measured on a product of ``(256, 1024) @ (1024, 1024)``.
    """
    operations = 2.0 * num_parameters * num_tokens
    seconds = 0.0
    for skeleton in skeletons:
        is_native = skeleton.arithmetic is Arithmetic.NATIVE
        dtype = skeleton.dtype if is_native else Dtype.FLOAT32
        seconds += operations / _operations_per_second(torch_dtype(dtype), device)
    return seconds


@functools.cache
def _operations_per_second(dtype: torch.dtype, device: str) -> float:
    rows = torch.ones(_ROWS, _SIZE, dtype=dtype, device=device)
    weight = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
    float((rows @ weight)[0, 0])  # the first product initialises the library
    start = time.perf_counter()
    float((rows @ weight)[0, 0])  # reading a number waits for the device
    return 2.0 * _ROWS * _SIZE * _SIZE / (time.perf_counter() - start)
