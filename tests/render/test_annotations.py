"""Annotations for GitHub Actions: one command a finding, and no text that is more than text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from precheck.judge import judge
from precheck.judge.baseline import accept, read_baseline
from precheck.records.finding import Severity
from precheck.render import RENDERERS, Format
from precheck.render.parts.words import shown
from tests import hand_made
from tests.any_report import reports
from tests.render.evil import evil_report
from tests.render.test_any_report import ANY
from tests.render.workflow_commands import acted_on

if TYPE_CHECKING:
    from precheck.records.report import Report

GITHUB = RENDERERS[Format.GITHUB]
QWEN2 = judge(hand_made.qwen2_eager(), version="0.1.0")
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def assert_says_its_findings(report: Report) -> None:
    """Each command is a finding's, with its title and its words, and nothing else is one."""
    text = GITHUB.render(report)
    commands = acted_on(text)
    assert len(commands) == len(report.findings) == len(text.splitlines())
    for command, finding in zip(commands, report.findings, strict=True):
        severity = Severity.NOTE if finding.accepted is not None else finding.severity
        assert command.name == LEVELS[severity]
        title = shown(f"{finding.code} {report.model.id}").rstrip()  # the runner trims it
        assert command.properties == ({"title": title} if title else {})
        said = [finding.message, finding.advice]
        said += [] if finding.accepted is None else [f"Accepted: {finding.accepted}"]
        assert command.data == "\n".join(map(shown, said))


def test_every_finding_is_an_annotation_of_its_severity() -> None:
    assert_says_its_findings(QWEN2)
    first = GITHUB.render(QWEN2).splitlines()[0]
    assert first.startswith("::error title=PC301 demo%3Aqwen2-eager::")


def test_what_a_baseline_accepts_is_a_notice_with_its_reason() -> None:
    baseline = read_baseline('[[accept]]\ncode = "PC301"\nreason = "we use sdpa"\n')
    commands = acted_on(GITHUB.render(accept(QWEN2, baseline)))
    levels = {command.properties["title"].split()[0]: command.name for command in commands}
    assert levels["PC301"] == "notice"
    assert levels["PC201"] == "error"
    assert commands[0].data.endswith("\nAccepted: we use sdpa")


def test_a_healthy_model_has_none() -> None:
    assert acted_on(GITHUB.render(judge(hand_made.measurements(), version="0.1.0"))) == []


@pytest.mark.parametrize(
    "hostile",
    [
        "\n::add-mask::secret",
        "\r::add-mask::secret",
        "::error::x",
        "##[add-mask]secret",
        "a,line=1::x",
        "100%0A::add-mask::secret%",
        "%250A%3A",
        "\u2028::add-mask::secret\x85",
    ],
)
def test_no_text_becomes_a_command(hostile: str) -> None:
    said = replace(
        QWEN2.findings[0], code=hostile, message=hostile, advice=hostile, accepted=hostile
    )
    model = replace(QWEN2.model, id=hostile)
    assert_says_its_findings(replace(QWEN2, model=model, findings=(said,)))


def test_the_evil_report_is_told_as_text() -> None:
    assert_says_its_findings(evil_report())


@ANY
@given(report=reports())
def test_any_report_is_told_as_text(report: Report) -> None:
    assert_says_its_findings(report)
