"""Whether a device computes correctly: the casts, comparisons, products and kernels of a scan.

Every input and every expected value is exact in the dtype, so results are compared for equality.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn import functional

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.facts import devices
from precheck.measure.machine.device_check import float16_sums
from precheck.measure.machine.devices import find_devices
from precheck.records.outcomes.selftest import Check
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

_SIZE = 64
_FINITE_INPUTS = 4.0
"""Largest magnitude of an ordinary activation."""


class _Cast(NamedTuple):
    value: float
    expected: float


_CASTS = {
    Dtype.FLOAT16: (
        _Cast(65_519.0, 65_504.0),
        _Cast(65_520.0, math.inf),
        _Cast(-70_000.0, -math.inf),
        _Cast(2049.0, 2048.0),
        _Cast(2051.0, 2052.0),
        _Cast(2.0**-25, 0.0),
    ),
    Dtype.BFLOAT16: (
        _Cast(1.0 + 2.0**-8, 1.0),
        _Cast(1.0 + 3 * 2.0**-8, 1.0 + 2.0**-6),
        _Cast(3.39e38, (2.0 - 2.0**-7) * 2.0**127),
        _Cast(3.4e38, math.inf),
        _Cast(70_000.0, 70_144.0),
    ),
}
"""Rounding to nearest, ties to even, and the first values that do not fit (IEEE 754-2008).

The maximum of bfloat16 is (2 - 2^-7) 2^127 = 3.3895e38; a value above 3.3962e38 becomes infinite.
"""


def check_arithmetic(device: str) -> Iterator[Check]:
    """All checks of a device; they take seconds."""
    for dtype in Dtype:
        yield from _dtype_checks(dtype, device)
    yield check_sums(device)
    yield from _emulation(device)


def _dtype_checks(dtype: Dtype, device: str) -> Iterator[Check]:
    in_torch = torch_dtype(dtype)
    if dtype in _CASTS:
        values = torch.tensor([cast.value for cast in _CASTS[dtype]], device=device)
        results = values.to(in_torch).float().tolist()
        wrong = [
            f"{cast.value:g} became {result:g}, not {cast.expected:g}"
            for cast, result in zip(_CASTS[dtype], results, strict=True)
            if result != cast.expected
        ]
        yield _check(f"casts to {dtype} round to nearest", wrong)
    yield _check(f"NaN and infinity are detected in {dtype}", _missed(in_torch, device))
    yield _check(f"products in {dtype} are correct", _wrong_products(in_torch, device))
    yield _check(f"kernels in {dtype} give finite results", _broken_kernels(in_torch, device))
    are_kept = _keeps_subnormals(dtype, in_torch, device)
    yield Check(
        what=f"{dtype} subnormal numbers",
        holds=are_kept,
        found="kept" if are_kept else "flushed to zero: small values are lost here",
        is_needed=False,
    )


def _check(what: str, wrong: list[str]) -> Check:
    return Check(what=what, holds=not wrong, found="; ".join(wrong) or "yes")


def _missed(dtype: torch.dtype, device: str) -> list[str]:
    """Faults that ``aminmax`` and ``isfinite`` miss, on which every measurement is based."""
    missed = []
    for name, value in (("NaN", math.nan), ("inf", math.inf), ("-inf", -math.inf)):
        tensor = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
        tensor[_SIZE // 2, 3] = value
        low, high = torch.aminmax(tensor)
        if math.isfinite(float(low)) and math.isfinite(float(high)):
            missed.append(f"aminmax misses {name}")
        if int(tensor.isfinite().logical_not().sum()) != 1:
            missed.append(f"isfinite misses {name}")
    return missed


def _wrong_products(dtype: torch.dtype, device: str) -> list[str]:
    """Products of small whole numbers, exact in every dtype, and one that overflows."""
    random = torch.Generator().manual_seed(0)
    left = torch.randint(-2, 3, (_SIZE, _SIZE), generator=random)
    right = torch.randint(-2, 3, (_SIZE, _SIZE), generator=random)
    product = left.to(device, dtype) @ right.to(device, dtype)
    wrong = int((product.double().cpu() != (left @ right).double()).sum())
    faults = [f"{wrong} of {_SIZE * _SIZE} elements are wrong"] if wrong else []
    if dtype is torch.float16:
        large = torch.full((_SIZE, _SIZE), 256.0, dtype=dtype, device=device)
        if not bool((large @ large).isinf().all()):
            faults.append("a product of 4,194,304 is not infinite in float16")
    return faults


def _broken_kernels(dtype: torch.dtype, device: str) -> list[str]:
    """Kernels of common operations whose result is not finite for ordinary numbers."""
    random = torch.Generator().manual_seed(0)
    values = torch.rand(2, 4, _SIZE, _SIZE, generator=random) * 2 * _FINITE_INPUTS - _FINITE_INPUTS
    tensor = values.to(device, dtype)
    weight = tensor[0, 0]
    kernels: dict[str, Callable[[], Tensor]] = {
        "softmax": lambda: tensor.softmax(dim=-1),
        "layer_norm": lambda: functional.layer_norm(tensor, (_SIZE,)),
        "silu": lambda: functional.silu(tensor),
        "gelu": lambda: functional.gelu(tensor),
        "linear": lambda: functional.linear(tensor, weight),
        "sdpa": lambda: functional.scaled_dot_product_attention(
            tensor, tensor, tensor, is_causal=True
        ),
    }
    return [
        f"{name} is not finite" for name, run in kernels.items() if not bool(run().isfinite().all())
    ]


def _keeps_subnormals(dtype: Dtype, torch_dtype: torch.dtype, device: str) -> bool:
    """Whether half of the smallest normal number is more than zero."""
    smallest = torch.full((_SIZE,), dtype.limits.smallest_normal, dtype=torch_dtype, device=device)
    return bool((smallest * 0.5 > 0).all())


def check_sums(device: str) -> Check:
    """The dtype in which the device accumulates float16 products."""
    sums = float16_sums(device)
    return Check(
        what="float16 products accumulate in",
        holds=sums is not None,
        found="float16: partial sums overflow" if sums is None else sums.replace("_", " "),
        is_needed=False,
    )


def _emulation(device: str) -> Iterator[Check]:
    kind = torch.device(device).type
    for accelerator in find_devices():
        if accelerator.kind == "cpu" or kind == "cpu":
            continue
        emulates = devices.of(accelerator).emulates_bfloat16
        yield Check(
            what=f"bfloat16 on {accelerator.name}",
            holds=not emulates,
            found="only emulated: slow, without tensor cores" if emulates else "native",
            is_needed=False,
        )
