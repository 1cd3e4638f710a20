"""Torch's rules for the kernel of sdpa, a row each (``sdp_utils.cpp``)."""

from __future__ import annotations

import pytest

from precheck.facts.devices import find
from precheck.judge.devices.sdpa import falls_to_math, sdpa_kernel
from precheck.records.precision import Dtype
from precheck.records.sizes import AttentionFacts

F16, BF16, F32 = Dtype.FLOAT16, Dtype.BFLOAT16, Dtype.FLOAT32


def heads(size: int, *, values: int | None = None) -> AttentionFacts:
    return AttentionFacts(supported=("sdpa",), head_dim=size, value_head_dim=values or size)


@pytest.mark.parametrize(
    ("device", "dtype", "size", "is_masked", "kernel"),
    [
        ("T4", F16, 128, False, "memory-efficient"),
        ("T4", F32, 128, False, "memory-efficient"),
        ("T4", BF16, 128, False, "math"),
        ("V100", BF16, 128, True, "math"),
        ("V100", F16, 128, True, "memory-efficient"),
        ("P40", F16, 128, False, "memory-efficient"),
        ("A100", BF16, 128, False, "flash"),
        ("A100", BF16, 128, True, "memory-efficient"),
        ("A100", F32, 128, False, "memory-efficient"),
        ("A100", F16, 256, False, "flash"),
        ("A100", F16, 264, False, "memory-efficient"),
        ("A100", F16, 100, True, "math"),
        ("T4", F16, 100, False, "math"),
        ("P40", F16, 100, False, "memory-efficient"),
        ("H100", F16, 128, True, "cudnn"),
        ("H100", F16, 256, False, "flash"),
        ("H100", F32, 128, False, "memory-efficient"),
        ("B200", BF16, 128, False, "cudnn"),
        ("RTX 5090", BF16, 128, False, "flash"),
        ("sm_130", F16, 128, False, "math"),
        ("MI300X", BF16, 512, False, "flash"),
        ("MI300X", BF16, 128, True, "memory-efficient"),
        ("MI300X", F16, 520, False, "math"),
        ("Radeon RX 7900 XTX", F16, 128, False, "math"),
        ("Radeon RX 6800", F16, 128, False, "math"),
        ("cpu", F16, 128, True, "flash"),
    ],
)
def test_the_rule(device: str, dtype: Dtype, size: int, is_masked: bool, kernel: str) -> None:
    predicted = sdpa_kernel(find(device), dtype, heads(size), is_masked=is_masked)
    assert predicted is not None
    assert predicted.name == kernel
    assert predicted.why


def test_values_of_another_size_are_not_for_flash() -> None:
    odd = heads(192, values=128)
    for device, kernel in (("A100", "memory-efficient"), ("cpu", "math")):
        predicted = sdpa_kernel(find(device), F16, odd, is_masked=False)
        assert predicted is not None
        assert predicted.name == kernel


def test_nothing_is_said_where_no_rule_is_known() -> None:
    assert sdpa_kernel(find("Apple M2"), F16, heads(128), is_masked=False) is None
    assert not falls_to_math(find("Apple M2"), BF16, None)
    assert falls_to_math(find("T4"), BF16, None)
