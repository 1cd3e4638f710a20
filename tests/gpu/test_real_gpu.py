"""What only a real GPU can tell: run with ``make gpu`` where there is one."""

from __future__ import annotations

import pytest
import torch

import precheck
from precheck.facts.devices import of
from precheck.facts.hardware import Float16Sums, Support
from precheck.judge.devices.sdpa import sdpa_kernel
from precheck.measure.machine.device_check import float16_sums
from precheck.measure.machine.devices import find_devices
from precheck.records.precision import Dtype
from precheck.records.sizes import AttentionFacts
from tests.kernels import chosen_kernel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def test_the_gpu_is_found_with_its_driver_and_is_known() -> None:
    found = find_devices()[0]
    assert found.kind in {"cuda", "rocm"}
    assert found.memory_bytes
    assert found.memory_free_bytes
    assert of(found).assumptions == (), "this GPU is not in devices.toml"
    if found.kind == "cuda":
        assert found.driver
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        assert (of(found).bfloat16 is Support.NATIVE) == native


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 192, 256, 512])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_kernel_is_the_one_that_was_predicted(
    dtype: Dtype, head_dim: int, is_masked: bool
) -> None:
    attention = AttentionFacts(supported=("sdpa",), head_dim=head_dim, value_head_dim=head_dim)
    predicted = sdpa_kernel(of(find_devices()[0]), dtype, attention, is_masked=is_masked)
    assert predicted is not None
    assert predicted.name == chosen_kernel(
        "cuda", getattr(torch, dtype), head_dim=head_dim, is_masked=is_masked
    )


def test_float16_products_are_added_up_as_the_table_says() -> None:
    known = of(find_devices()[0]).float16_sums
    measured = float16_sums("cuda")
    assert measured is not None
    if known is Float16Sums.FLOAT32:
        assert measured is Float16Sums.FLOAT32


def test_advice_for_this_gpu_is_measured() -> None:
    report = precheck.scan("demo:qwen2-eager", quick=True)
    assert report.recommendation is not None
    assert report.recommendation.confidence == "measured"
    assert report.recommendation.attention
