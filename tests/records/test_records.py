from __future__ import annotations

import json
import math
from functools import reduce

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precheck.errors import ReportError
from precheck.judge import judge
from precheck.records.configuration import Configuration
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.fix import Float32Recipe
from precheck.records.precision import Dtype, headroom_bits
from precheck.records.report import Measurements, Report
from precheck.records.stats import TensorStats
from precheck.records.tightest import bits_left, tightest
from tests import hand_made
from tests.any_report import reports


def statistics_of(values: list[float]) -> TensorStats:
    finite = [abs(value) for value in values if math.isfinite(value)]
    return TensorStats(
        num_elements=len(values),
        num_nan=sum(math.isnan(value) for value in values),
        num_inf=sum(math.isinf(value) for value in values),
        abs_max=max(finite, default=None),
    )


@pytest.mark.parametrize("dtype", list(Dtype))
def test_limits_are_those_of_torch(dtype: Dtype) -> None:
    info = torch.finfo(getattr(torch, dtype))
    limits = dtype.limits
    assert limits.max == info.max
    assert limits.smallest_normal == info.smallest_normal
    assert limits.eps == info.eps
    assert limits.num_bytes * 8 == info.bits
    smallest = torch.tensor(limits.smallest_subnormal, dtype=getattr(torch, dtype))
    assert smallest.item() == limits.smallest_subnormal
    assert (smallest / 2).item() == 0


@given(left=st.lists(st.floats()), right=st.lists(st.floats()))
def test_merging_equals_measuring_the_concatenation(left: list[float], right: list[float]) -> None:
    assert statistics_of(left).merge(statistics_of(right)) == statistics_of(left + right)


@given(values=st.lists(st.floats()))
def test_nothing_changes_nothing_when_merged(values: list[float]) -> None:
    measured = statistics_of(values)
    assert measured.merge(TensorStats()) == measured
    assert TensorStats().merge(measured) == measured


@given(parts=st.lists(st.lists(st.floats()), min_size=1, max_size=5))
def test_the_order_of_merging_does_not_matter(parts: list[list[float]]) -> None:
    measured = [statistics_of(part) for part in parts]
    forward = reduce(TensorStats.merge, measured)
    assert forward == reduce(TensorStats.merge, reversed(measured))


@given(abs_max=st.floats(min_value=1e-30, max_value=1e30), dtype=st.sampled_from(list(Dtype)))
def test_doubling_costs_one_bit_of_headroom(abs_max: float, dtype: Dtype) -> None:
    before, after = headroom_bits(abs_max, dtype), headroom_bits(2 * abs_max, dtype)
    assert before is not None
    assert after is not None
    assert before - after == pytest.approx(1.0)


def test_what_just_fits_has_no_headroom_left() -> None:
    assert headroom_bits(Dtype.FLOAT16.limits.max, Dtype.FLOAT16) == 0
    assert headroom_bits(0.0, Dtype.FLOAT16) is None


def test_scores_count_for_eager_alone() -> None:
    rows = [row for row in hand_made.qwen2_eager().headroom if row.abs_max == 231_000.0]
    eager = Configuration(dtype=Dtype.FLOAT16, attn_implementation="eager")
    sdpa = Configuration(dtype=Dtype.FLOAT16, attn_implementation="sdpa")
    assert bits_left(rows[0], sdpa) is None
    tight = tightest(hand_made.qwen2_eager().headroom, eager)
    assert tight is not None
    assert tight[0].mechanism is Mechanism.ATTENTION_SCORES
    assert tight[1] == pytest.approx(math.log2(65_504 / 231_000))
    assert tightest(rows, sdpa) is None


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(report=reports())
def test_a_report_survives_json(report: Report) -> None:
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert Report.from_dict(json.loads(text)) == report


@pytest.mark.parametrize(
    "measurements",
    [hand_made.measurements(), hand_made.qwen2_eager(), hand_made.broken_checkpoint()],
    ids=lambda scan: scan.model.id,
)
def test_a_judged_report_survives_json(measurements: Measurements) -> None:
    report = judge(measurements, version="0.1.0")
    assert Report.from_dict(json.loads(json.dumps(report.to_dict(), allow_nan=False))) == report


def test_another_schema_is_refused() -> None:
    plain = judge(hand_made.measurements(), version="0.1.0").to_dict()
    with pytest.raises(ReportError, match="precheck/2"):
        Report.from_dict({**plain, "schema": "precheck/2"})
    with pytest.raises(ReportError, match="not readable"):
        Report.from_dict({**plain, "runs": "none"})


def test_every_mechanism_has_words() -> None:
    assert all(mechanism.phrase for mechanism in Mechanism)


@pytest.mark.parametrize("change", [{"num_bytes": 10**400}, {"dtype": "\udc80"}, {"modules": [3]}])
def test_a_recipe_that_nothing_wrote_is_refused(change: dict[str, object]) -> None:
    recipe = Float32Recipe(
        model="m", dtype=Dtype.FLOAT16, attn_implementation="sdpa", modules=("a",), num_bytes=2
    )
    assert Float32Recipe.from_dict(recipe.to_dict()).num_bytes == 2
    with pytest.raises(ReportError, match="recipe not readable"):
        Float32Recipe.from_dict(recipe.to_dict() | change)
