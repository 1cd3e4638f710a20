"""The findings as a baseline to fill in: what is accepted from now on, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.finding import Severity, module_pattern
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from precheck.records.finding import Finding
    from precheck.records.report import Report

_HEAD = """\
# Known findings: precheck scan ... --baseline FILE accepts them and fails on new ones.
# Give each a reason, or delete it. * matches anything.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineReport:
    """TOML for ``--baseline``; reasons are left to be written."""

    extension: str = ".toml"

    def render(self, report: Report) -> str:
        """An entry for each finding that is more than a note, or that was accepted before."""
        entries = [
            _entry(finding)
            for finding in report.findings
            if finding.severity is not Severity.NOTE or finding.accepted is not None
        ]
        return "\n".join((_HEAD, *dict.fromkeys(entries)))


def _entry(finding: Finding) -> str:
    patterns = {module_pattern(module) for module in finding.modules}
    lines = [f"# {shown(finding.gist)}", "[[accept]]"]
    lines.append(f"code = {_string(finding.code)}")
    if len(patterns) == 1:
        lines.append(f"module = {_string(*patterns)}")
    if finding.op is not None:
        lines.append(f"op = {_string(finding.op)}")
    lines.append(f"reason = {_string(finding.accepted or '')}")
    return "\n".join((*lines, ""))


def _string(text: str) -> str:
    """A basic string of TOML; JSON spells it the same once nothing is left to escape but quotes."""
    return json.dumps(shown(text), ensure_ascii=False)
