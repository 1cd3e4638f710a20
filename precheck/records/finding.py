"""A finding: a sentence with a code, a severity and how sure precheck is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from precheck.records.quantities import first_sentence
from precheck.records.traces import Headroom, Overflow, Section

if TYPE_CHECKING:
    from collections.abc import Iterable


class Severity(StrEnum):
    """How much a finding matters, worst first."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Confidence(StrEnum):
    """Where a finding comes from."""

    MEASURED = "measured"
    PREDICTED = "predicted"
    DOCUMENTED = "documented"
    PROVED = "proved"
    """It follows from what is stored, whatever is run."""


class Verdict(StrEnum):
    """The judgement on a run: the first of these that applies, worst first."""

    FAILED = "failed"
    INCOMPLETE = "incomplete"
    """The scan ended before the run did, and nothing had overflowed until then."""
    OVERFLOW = "overflow"
    DEGRADED = "degraded"
    ABSORBED = "absorbed"
    LOW_HEADROOM = "low_headroom"
    SAFE = "safe"

    @property
    def order(self) -> int:
        """Its place among them: 0 for the gravest."""
        return list(type(self)).index(self)


VERBS = {
    Verdict.FAILED: "could not be run",
    Verdict.INCOMPLETE: "is incomplete",
    Verdict.OVERFLOW: "overflows",
    Verdict.DEGRADED: "loses accuracy",
    Verdict.ABSORBED: "absorbs an overflow",
    Verdict.LOW_HEADROOM: "has less than one bit of headroom",
    Verdict.SAFE: "is safe",
}
"""What a run with the verdict does."""
USABLE = frozenset({Verdict.SAFE, Verdict.LOW_HEADROOM, Verdict.ABSORBED})
"""Verdicts of runs that answer as float32 does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What, where, evidence and consequence in ``message``; what to do in ``advice``."""

    code: str
    severity: Severity
    confidence: Confidence
    message: str
    advice: str
    runs: tuple[int, ...] = ()
    layer: int | None = None
    section: Section | None = None
    module: str | None = None
    """The first module it happens in."""
    modules: tuple[str, ...] = ()
    """All of them."""
    op: str | None = None
    source: str | None = None
    source_file: str | None = None
    probes: tuple[str, ...] = ()
    in_vain: str = ""
    """What people try that does not help."""
    snippet: str = ""
    """Python to copy that does what the advice says, line by line."""
    engine: str | None = None
    """The inference engine it is about, as that spells itself; None where it is about all."""
    accepted: str | None = None
    """The reason that a baseline gives for accepting it; None where none does."""

    @property
    def is_of_checkpoint(self) -> bool:
        """Whether it is about the stored files, so about every run: PC5xx, and PC61x of scales."""
        return self.code.startswith(("PC5", "PC61"))

    @property
    def gist(self) -> str:
        """What is wrong: the first sentence of the message, without its full stop."""
        return first_sentence(self.message)

    @property
    def headline(self) -> str:
        """The gist up to its first semicolon or parenthesis: what fits into one line."""
        return self.gist.split("; ", 1)[0].split(" (", 1)[0]

    @property
    def identity(self) -> tuple[str, str, str]:
        """What makes two findings the same: code, module in any layer, and operation; no figure.

        Module and operation are empty where it has none.
        """
        module = "" if self.module is None else module_pattern(self.module)
        return (self.code, module, self.op or "")

    def at(self, *rows: Overflow | Headroom) -> Finding:
        """The same finding, located where these rows are; the first is the one that is shown."""
        first = rows[0]
        return replace(
            self,
            layer=first.layer,
            section=first.section,
            module=first.module,
            modules=tuple(dict.fromkeys(row.module for row in rows)),
            op=first.op,
            source=first.source,
            source_file=first.source_file,
        )


def module_pattern(module: str) -> str:
    """The module in any layer.

    >>> module_pattern("model.layers.3.mlp.experts.0.up_proj")
    'model.layers.*.mlp.experts.*.up_proj'
    """
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def gravest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By severity; those of one severity stay in their order."""
    order = list(Severity)
    return tuple(sorted(findings, key=lambda finding: order.index(finding.severity)))
