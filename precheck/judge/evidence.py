"""What the rules read: the measurements, with every run judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.facts.hardware import Hardware
    from precheck.records.finding import Verdict
    from precheck.records.report import Measurements, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The facts of a scan, the verdicts on its runs, and the devices that the advice is for."""

    measurements: Measurements
    runs: tuple[Run, ...]
    devices: tuple[Hardware, ...] = ()

    @property
    def broken_references(self) -> tuple[int, ...]:
        """Indexes of the float32 runs that are themselves not finite."""
        return tuple(index for index, run in enumerate(self.runs) if run.reference_nonfinite)

    def with_verdict(
        self, *verdicts: Verdict, has_format: bool = False
    ) -> Iterable[tuple[int, Run]]:
        """Index and run of those with one of these verdicts, broken references left out.

        Args:
            verdicts: one of them.
            has_format: only runs with a format, whose findings are their own; else those without.
        """
        return (
            (index, run)
            for index, run in enumerate(self.runs)
            if run.verdict in verdicts
            and not run.reference_nonfinite
            and run.configuration.has_format is has_format
        )

    def without_formats(self, run: Run) -> Run | None:
        """The same configuration with everything stored in the dtype; None if it was not run."""
        plain = run.configuration.without_formats
        return next((other for other in self.runs if other.configuration == plain), None)
