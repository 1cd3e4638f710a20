"""Whether a report holds up to what is asked of it, and the exit code that says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from precheck.commands import arguments
from precheck.errors import BaselineError, ExitCode
from precheck.facts import format_names
from precheck.judge.baseline import Accepted, accept, read_baseline
from precheck.judge.gate import FailOn, gate, proof_of
from precheck.records.configuration import Configuration
from precheck.records.outcomes.gate import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.records.mechanism import Mechanism
    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Gating:
    """What is required, what is accepted, and what fails."""

    require: tuple[Configuration, ...]
    require_proof: tuple[Mechanism, ...]
    baseline: tuple[Accepted, ...]
    fail_on: FailOn

    @classmethod
    def of(
        cls,
        *,
        require: Sequence[str] | None,
        require_proof: str | None,
        baseline: Path | None,
        fail_on: FailOn,
    ) -> Self:
        """From what was typed.

        Raises:
            UsageError: a configuration or a mechanism that is not understood.
            BaselineError: a baseline that cannot be read.
        """
        return cls(
            require=tuple(
                format_names.canonical(Configuration.parse(text)) for text in require or ()
            ),
            require_proof=()
            if require_proof is None
            else tuple(map(proof_of, arguments.names(require_proof, flag="--require-proof"))),
            baseline=() if baseline is None else read_baseline(_text(baseline)),
            fail_on=fail_on,
        )

    def accept(self, report: Report) -> Report:
        """The report with the findings marked that the baseline lets pass."""
        return accept(report, self.baseline)

    def judge(self, report: Report) -> Gate:
        """PASS, FAIL or INCOMPLETE."""
        return gate(
            report,
            require=self.require,
            require_proof=self.require_proof,
            fail_on=self.fail_on,
        )


EXIT_CODES = {
    Outcome.PASS: ExitCode.GATE_HOLDS,
    Outcome.FAIL: ExitCode.GATE_FAILS,
    Outcome.INCOMPLETE: ExitCode.INCOMPLETE,
}
"""What the process ends with."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BaselineError(
            f"baseline is not UTF-8: {str(path)!r}, byte {error.start}", hint="convert it to UTF-8"
        ) from error
    except OSError as error:
        raise BaselineError(
            f"cannot read baseline: {str(path)!r}: {error.strerror}",
            hint=f"write one: precheck report REPORT.json -o {path}",
        ) from error
