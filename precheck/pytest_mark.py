"""What ``@pytest.mark.precheck`` asks for, and whether a report fulfils it."""

from __future__ import annotations

from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import precheck
from precheck.errors import UsageError, unknown
from precheck.judge.baseline import Accepted, accept, read_baseline
from precheck.judge.gate import FailOn, gate, proof_of
from precheck.records.configuration import Configuration
from precheck.records.finding import Severity
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pytest

    from precheck.records.mechanism import Mechanism
    from precheck.records.report import Report, Run

_OF_THE_MARK = ("model", "fail_on", "baseline", "require_proof")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a mark asks for; without one, a scan of whatever ``precheck_model`` is."""

    require: tuple[Configuration, ...] = ()
    require_proof: tuple[Mechanism, ...] = ()
    model: str | Path | None = None
    fail_on: str = "error"
    baseline: tuple[Accepted, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def by(cls, mark: pytest.Mark | None) -> Self:
        """From the mark that is closest to a test.

        Raises:
            UsageError: a configuration or an argument that there is not.
            BaselineError: a baseline that cannot be used.
        """
        if mark is None:
            return cls()
        options = dict(mark.kwargs)
        model, fail_on, baseline, proof = (options.pop(name, None) for name in _OF_THE_MARK)
        of_scan = signature(precheck.scan).parameters.keys() - {"model", "require", "observe"}
        for name in sorted(options.keys() - of_scan):
            known = sorted({*_OF_THE_MARK, *of_scan})
            raise unknown(
                "argument of the mark", name, known, hint="the others are precheck.scan's"
            )
        if fail_on not in {None, *FailOn}:
            raise unknown("fail_on", str(fail_on), FailOn, hint="leave it out for errors")
        text = "" if baseline is None else Path(baseline).read_text(encoding="utf-8-sig")
        return cls(
            require=tuple(map(Configuration.parse, mark.args)),
            require_proof=tuple(map(proof_of, proof or ())),
            model=model,
            fail_on=fail_on or FailOn.ERROR,
            baseline=read_baseline(text),
            options=options,
        )

    @property
    def checkpoint(self) -> str | Path:
        """The mark's model.

        Raises:
            UsageError: it names none.
        """
        if self.model is None:
            raise UsageError(
                "no model to scan (expected one in the mark, or a fixture precheck_model)",
                hint='@pytest.mark.precheck("float16+sdpa", model="Qwen/Qwen2-0.5B")',
            )
        return self.model

    def scan(self, model: Any) -> Report:  # noqa: ANN401  scan checks what it is given
        """The report on a model, measured in what is required besides the usual."""
        return precheck.scan(model, require=self.require, **self.options)

    def is_answered_by(self, report: Report) -> bool:
        """Whether everything that is required was measured."""
        return all(any(each in _names_of(run) for run in report.runs) for each in self.require)

    def objections(self, report: Report) -> list[str]:
        """Why the model does not pass, a line each; none if it does."""
        report = accept(report, self.baseline)
        outcome = gate(
            report,
            require=self.require,
            require_proof=self.require_proof,
            fail_on=FailOn(self.fail_on),
        )
        if outcome.holds:
            return []
        wanted = self.require or (report.model.deployed,)
        judged = {i for i, run in enumerate(report.runs) if not _names_of(run).isdisjoint(wanted)}
        findings = [
            f"{finding.code}: {finding.message}"
            for finding in report.findings
            if finding.severity is not Severity.NOTE
            and finding.accepted is None
            and (not finding.runs or not judged.isdisjoint(finding.runs))
        ]
        return [shown(line) for line in (outcome.line, *findings)]


def _names_of(run: Run) -> frozenset[Configuration]:
    """What a run can be required as: as asked for, as it ran, and by its dtype."""
    return run.configurations | {run.configuration.with_attention("")}


def files_of(model: str | Path) -> list[tuple[str, int, int]]:
    """What tells that a local checkpoint has been written again."""
    folder = Path(model)
    found = ((each.name, each.stat()) for each in folder.iterdir()) if folder.is_dir() else ()
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
