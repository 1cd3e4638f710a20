"""Whether a device computes what the measurements rest on: casts, comparisons, products, kernels.

Every input is exact in the dtype, and every expected value is too, so that equality can be asked.
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
from precheck.records.precision import Dtype
from precheck.records.selftest import Check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

_SIZE = 64
_FINITE_INPUTS = 4.0
"""Ordinary activations reach this far."""


class _Cast(NamedTuple):
    given: float
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

bfloat16 ends at (2 - 2^-7) 2^127 = 3.3895e38; what rounds to more than 3.3962e38 is infinite.
"""


def check_arithmetic(device: str) -> Iterator[Check]:
    """All checks of a device, seconds in all."""
    for dtype in Dtype:
        yield from _dtype_checks(dtype, device)
    yield check_sums(device)
    yield from _emulation(device)


def _dtype_checks(dtype: Dtype, device: str) -> Iterator[Check]:
    in_torch = torch_dtype(dtype)
    if dtype in _CASTS:
        given = torch.tensor([each.given for each in _CASTS[dtype]], device=device)
        cast = given.to(in_torch).float().tolist()
        wrong = [
            f"{each.given:g} became {found:g}, not {each.expected:g}"
            for each, found in zip(_CASTS[dtype], cast, strict=True)
            if found != each.expected
        ]
        yield _check(f"casts to {dtype} round to nearest", wrong)
    yield _check(f"NaN and infinity are seen in {dtype}", _unseen(in_torch, device))
    yield _check(f"products in {dtype} are right", _wrong_products(in_torch, device))
    yield _check(f"kernels in {dtype} give finite numbers", _broken_kernels(in_torch, device))
    kept = _keeps_subnormals(dtype, in_torch, device)
    yield Check(
        what=f"subnormal numbers of {dtype}",
        holds=kept,
        found="kept" if kept else "flushed to zero: small values are lost here",
        is_needed=False,
    )


def _check(what: str, wrong: list[str]) -> Check:
    return Check(what=what, holds=not wrong, found="; ".join(wrong) or "yes")


def _unseen(dtype: torch.dtype, device: str) -> list[str]:
    """Faults that the two reductions miss which every measurement is made with."""
    missed = []
    for name, value in (("NaN", math.nan), ("inf", math.inf), ("-inf", -math.inf)):
        tensor = torch.ones(_SIZE, _SIZE, dtype=dtype, device=device)
        tensor[_SIZE // 2, 3] = value
        low, high = torch.aminmax(tensor)
        if math.isfinite(float(low)) and math.isfinite(float(high)):
            missed.append(f"aminmax does not see {name}")
        if int(tensor.isfinite().logical_not().sum()) != 1:
            missed.append(f"isfinite does not see {name}")
    return missed


def _wrong_products(dtype: torch.dtype, device: str) -> list[str]:
    """Products of small whole numbers, exact in every dtype, and one that overflows."""
    random = torch.Generator().manual_seed(0)
    left = torch.randint(-2, 3, (_SIZE, _SIZE), generator=random)
    right = torch.randint(-2, 3, (_SIZE, _SIZE), generator=random)
    product = left.to(device, dtype) @ right.to(device, dtype)
    wrong = int((product.double().cpu() != (left @ right).double()).sum())
    found = [f"{wrong} of {_SIZE * _SIZE} elements are wrong"] if wrong else []
    if dtype is torch.float16:
        large = torch.full((_SIZE, _SIZE), 256.0, dtype=dtype, device=device)
        if not bool((large @ large).isinf().all()):
            found.append("a product of 4,194,304 is not infinite in float16")
    return found


def _broken_kernels(dtype: torch.dtype, device: str) -> list[str]:
    """Operations that models are made of, on ordinary numbers."""
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
    """What float16 products of the device are added up in."""
    found = float16_sums(device)
    said = "float16: partial sums overflow" if found is None else found.replace("_", " ")
    return Check(
        what="float16 products are added up in",
        holds=found is not None,
        found=said,
        is_needed=False,
    )


def _emulation(device: str) -> Iterator[Check]:
    kind = torch.device(device).type
    for each in find_devices():
        if each.kind == "cpu" or kind == "cpu":
            continue
        emulates = devices.of(each).emulates_bfloat16
        yield Check(
            what=f"bfloat16 of {each.name}",
            holds=not emulates,
            found="only emulated: slow, and no tensor cores" if emulates else "native",
            is_needed=False,
        )
