"""The findings as workflow commands, which GitHub Actions shows as annotations of a run.

**Source**: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands;
how they are read and unescaped: https://github.com/actions/runner, ``ActionCommand.cs``
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.finding import Severity
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from precheck.records.finding import Finding
    from precheck.records.report import Report

_LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


@dataclass(frozen=True, slots=True, kw_only=True)
class GithubReport:
    """A workflow command a line; for stdout, where the runner reads them."""

    extension: str = ".txt"

    def render(self, report: Report) -> str:
        """A command for each finding; findings that a baseline accepts are notices."""
        return "\n".join(_command(report, finding) for finding in report.findings)


def _command(report: Report, finding: Finding) -> str:
    level = _LEVELS[Severity.NOTE if finding.accepted is not None else finding.severity]
    lines = [finding.message, finding.advice]
    if finding.accepted is not None:
        lines.append(f"Accepted: {finding.accepted}")
    title = _property(f"{finding.code} {report.model.id}")
    return f"::{level} title={title}::{_data(lines)}"


def _data(lines: list[str]) -> str:
    r"""What a command says; its line breaks are escaped, so that no text begins a command.

    >>> _data(["100% of it", "line\n::error::two"])
    '100%25 of it%0Aline\\n::error::two'
    """
    return "%0A".join(shown(line).replace("%", "%25") for line in lines)


def _property(text: str) -> str:
    """A value that ends neither itself nor the command.

    >>> _property("PC301 demo:a,b 100%")
    'PC301 demo%3Aa%2Cb 100%25'
    """
    return shown(text).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
