"""No report that can be read makes a renderer fail, or lets text of the report act."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from precheck.judge.comparison.difference import difference
from precheck.judge.gate import FailOn, gate
from precheck.render import RENDERERS, Format
from precheck.render.parts.redaction import redacted
from precheck.render.screens.difference import render_difference
from tests.any_report import reports

if TYPE_CHECKING:
    from precheck.records.report import Report

# shrinking a report takes minutes
ANY = settings(
    max_examples=10,
    suppress_health_check=list(HealthCheck),
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)


@pytest.mark.parametrize("written_as", list(Format))
@ANY
@given(report=reports())
def test_every_format_is_written(report: Report, written_as: Format) -> None:
    text = RENDERERS[written_as].render(report)
    text.encode()
    if written_as is not Format.JSON:
        acting = [line for line in text.split("\n") if not line.isprintable()]
        assert acting == []


@ANY
@given(report=reports())
def test_what_is_redacted_is_still_a_report(report: Report) -> None:
    cleaned = redacted(report)
    assert len(cleaned.runs) == len(report.runs)
    assert redacted(cleaned) == cleaned


@ANY
@given(first=reports(), second=reports())
def test_any_two_can_be_compared(first: Report, second: Report) -> None:
    found = difference(first, second)
    text = render_difference(found, names=("a", "b"), width=80, colour=False)
    assert {c for c in text if not c.isprintable()} <= {"\n"}
    assert difference(first, first).is_empty
    assert found.is_empty == difference(second, first).is_empty


@ANY
@given(report=reports())
def test_any_report_can_be_gated(report: Report) -> None:
    for fail_on in FailOn:
        assert gate(report, fail_on=fail_on).reasons is not None
