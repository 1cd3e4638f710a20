"""A baseline: findings that are accepted, each with a reason.

They are matched by code, module and operation, never by a figure: rounding does not bring an
accepted finding back, and a finding in another module or operation is a new one.
"""

from __future__ import annotations

import tomllib
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import msgspec

from precheck.errors import BaselineError
from precheck.facts.findings import explanations

if TYPE_CHECKING:
    from precheck.records.finding import Finding
    from precheck.records.report import Report


class Accepted(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry."""

    code: str
    reason: str
    module: str = "*"
    """A pattern for every module of the finding: ``model.layers.*.self_attn``."""
    op: str = "*"
    """A pattern for the operation: ``aten.bmm``."""

    def accepts(self, finding: Finding) -> bool:
        """Whether the entry is about the finding, in all the modules it happens in."""
        return (
            finding.code == self.code
            and fnmatchcase(finding.op or "", self.op)
            and all(fnmatchcase(module, self.module) for module in finding.modules)
        )


class BaselineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file: a misspelt key would accept too much."""

    accept: tuple[Accepted, ...] = ()


def read_baseline(text: str) -> tuple[Accepted, ...]:
    """The entries of a baseline in TOML: ``[[accept]]`` with code, module, op and reason.

    Raises:
        BaselineError: not TOML, an unknown code or key, or an entry without a reason.
    """
    try:
        entries = msgspec.convert(tomllib.loads(text), BaselineFile).accept
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise BaselineError(f"baseline not readable: {error}", hint=_EXAMPLE) from error
    for number, entry in enumerate(entries, start=1):
        if entry.code not in explanations():
            raise BaselineError(
                f"baseline, entry {number}: unknown finding code {entry.code!r}",
                hint="precheck explain lists them",
            )
        if not entry.reason.strip():
            raise BaselineError(
                f"baseline, entry {number}: {entry.code} has no reason (expected a sentence)",
                hint="give a reason, so the next reader knows why it was accepted",
            )
    return entries


_EXAMPLE = 'write [[accept]], then lines such as code = "PC301" and reason = "we use sdpa"'


def accept(report: Report, baseline: tuple[Accepted, ...]) -> Report:
    """The same report, with the reason of an entry on each finding that it accepts."""
    return replace(
        report,
        findings=tuple(
            replace(finding, accepted=_reason(finding, baseline)) for finding in report.findings
        ),
    )


def _reason(finding: Finding, baseline: tuple[Accepted, ...]) -> str | None:
    return next((entry.reason for entry in baseline if entry.accepts(finding)), finding.accepted)
