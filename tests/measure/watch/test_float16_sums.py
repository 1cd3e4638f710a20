"""Sums in float16: the bound is a bound, the emulated accumulator does what a real one would."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.errors import UsageError
from precheck.measure.watch.float16_sums import CHUNK, Float16Sums, SumsTotals
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Accumulation
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

MM, ADDMM = torch.ops.aten.mm.default, torch.ops.aten.addmm.default


def cancelling(size: int = 4 * CHUNK) -> tuple[torch.Tensor, torch.Tensor]:
    """``(2, size)`` and ``(size, 3)`` float16: row 0 and column 0 go to 128,000 and back to 2."""
    left = torch.ones(2, size, dtype=torch.float16)
    left[1] = 2.0**-10
    right = torch.full((size, 3), 2.0**-6, dtype=torch.float16)
    right[: size // 2, 0], right[size // 2 :, 0] = 4000.0, -4000.0
    right[-1, 0] = -3998.0
    return left, right


def test_a_sum_that_is_infinite_half_way_stays_infinite() -> None:
    sums = Float16Sums()
    left, right = cancelling()
    assert sums.applies_to("aten.mm", [left, right])
    product = sums.compute(MM, (left, right), {})
    exact = left.double() @ right.double()
    assert exact[0, 0] == 2
    assert torch.isinf(product[0, 0])
    assert sums.overflowed_inside
    assert sums.bound == float((left.double().abs() @ right.double().abs()).max())
    # everything else is the exact result, rounded once
    others = torch.ones_like(product, dtype=torch.bool)
    others[0, 0] = False
    assert torch.equal(product[others], exact.half()[others])


def test_a_bias_is_added_at_the_end() -> None:
    left, right = cancelling()
    bias = torch.tensor([5.0, 6.0, 7.0], dtype=torch.float16)
    sums = Float16Sums()
    assert sums.applies_to("aten.addmm", [bias, left, right])
    product = sums.compute(ADDMM, (bias, left, right), {})
    assert torch.isinf(product[0, 0])
    assert torch.equal(product[1:, 1:], (bias + left.float() @ right.float()).half()[1:, 1:])


def test_what_is_out_of_range_anyway_is_no_accumulation() -> None:
    left = torch.full((1, CHUNK), 1000.0, dtype=torch.float16)
    sums = Float16Sums()
    product = sums.compute(MM, (left, left.T), {})
    assert torch.isinf(product).all()
    assert not sums.overflowed_inside


@given(st.integers(0, 2**32), st.integers(1, 80), st.floats(-4, 6))
def test_no_order_of_summation_exceeds_the_bound(seed: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = (torch.randn(2, size, generator=generator) * 2.0**scale).half()
    right = torch.randn(size, 3, generator=generator).half()
    sums = Float16Sums()
    sums.compute(MM, (left, right), {})
    order = torch.randperm(size, generator=generator)
    terms = left.double()[:, order].unsqueeze(-1) * right.double()[order]
    assert sums.bound is not None
    assert float(terms.cumsum(dim=1).abs().max()) <= sums.bound * (1 + 1e-5)


@given(st.integers(0, 2**32), st.integers(1, 70))
def test_the_emulated_sum_is_that_of_numbers_rounded_after_every_chunk(
    seed: int, size: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = (torch.randn(1, size, generator=generator) * 300).half()
    right = (torch.randn(size, 1, generator=generator) * 300).half()
    sums = Float16Sums()
    product = sums.compute(MM, (left, right), {})
    if sums.bound is not None and sums.bound > 65504:
        total = torch.zeros((), dtype=torch.float16)
        for start in range(0, size, CHUNK):
            part = (
                left[0, start : start + CHUNK].double() @ right[start : start + CHUNK, 0].double()
            )
            total = (total.double() + part).half()
        assert product[0, 0] == total or float((product[0, 0] - total).abs()) <= 32
        return
    assert product[0, 0] == (left.float() @ right.float()).half()[0, 0]


def test_other_operations_are_left_alone() -> None:
    sums = Float16Sums()
    assert not sums.applies_to("aten.bmm", [torch.ones(1, 1, 1, dtype=torch.float16)])
    assert not sums.applies_to("aten.mm", [torch.ones(1, 1)])
    assert sums.bound is None


def test_totals_of_batches_merge() -> None:
    first, second = SumsTotals(2, 1, 9.0, "a"), SumsTotals(3, 0, 4.0, "b")
    both = first.merge(second)
    assert (both.num_products, both.num_beyond, both.largest, both.module) == (5, 1, 9.0, "a")
    assert second.merge(first).module == "a"
    assert SumsTotals().merge(second).record == second.record
    assert SumsTotals().record is None


def test_a_kernel_is_proved_to_be_safe_where_no_sum_can_leave_float16(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path, tokenizer=False)
    report = precheck.scan(
        str(folder), dtypes=["float16"], attn_implementations=["sdpa"], accumulations=["float16"]
    )
    (run,) = (run for run in report.runs if run.accumulation is Accumulation.FLOAT16)
    assert run.verdict is Verdict.SAFE
    assert run.partial_sums is not None
    assert run.partial_sums.num_beyond_float16 == 0
    # 7 linears in each of 3 layers, and the head, for every batch
    assert run.partial_sums.num_products % 22 == 0
    (proof,) = (finding for finding in report.findings if finding.code == "PC115")
    assert proof.severity is Severity.NOTE
    assert "cannot overflow here, whatever the order" in proof.message


def test_packed_weights_are_measured_with_both_by_default_and_others_on_request(
    tmp_path: Path,
) -> None:
    GALLERY["qwen2.5-gptq"].build(tmp_path)
    both = precheck.scan(str(tmp_path), dtypes=["float16"], quick=True)
    assert [run.name for run in both.runs if run.accumulation is Accumulation.FLOAT16] == [
        "float16 + sdpa (float16 sums)"
    ]
    plain = precheck.scan(str(tmp_path), dtypes=["float16"], quick=True, accumulations=["float32"])
    assert {run.accumulation for run in plain.runs} == {Accumulation.FLOAT32}


def test_the_gate_is_about_what_is_deployed_not_about_an_odd_kernel(tmp_path: Path) -> None:
    from precheck.judge.gate import FailOn, gate  # noqa: PLC0415

    GALLERY["qwen2.5-gptq"].build(tmp_path)
    report = precheck.scan(str(tmp_path))
    assert gate(report, fail_on=FailOn.ERROR).holds
    (broken,) = (run for run in report.runs if run.verdict is Verdict.OVERFLOW)
    assert broken.first_overflow is not None
    assert broken.first_overflow.mechanism is Mechanism.ACCUMULATION
    assert [choice.dtype for choice in report.other_recommendations] == ["float16", "float16"]


def test_an_unknown_accumulation_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="unknown accumulation: 'bfloat16'"):
        precheck.scan("demo:qwen2-eager", accumulations=["bfloat16"])
