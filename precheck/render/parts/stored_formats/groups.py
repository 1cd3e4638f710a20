"""Runs with formats, beside the same run without them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from precheck.records.configuration import Configuration
    from precheck.records.report import Report, Run

NO_FORMAT = "none"


class Group(NamedTuple):
    """Runs that differ in their formats only."""

    configuration: Configuration
    """What they have in common."""
    plain: Run | None
    """The run without a format; None where it was not measured."""
    runs: tuple[Run, ...]
    """Those with a format."""

    @property
    def all(self) -> tuple[Run, ...]:
        """The one without a format first."""
        return self.runs if self.plain is None else (self.plain, *self.runs)


def plain_runs(report: Report) -> tuple[Run, ...]:
    """The runs without a format: everything is stored in the dtype."""
    return tuple(run for run in report.runs if not run.configuration.has_format)


def groups(report: Report) -> tuple[Group, ...]:
    """The runs with a format by what they have in common; none where no format was asked for."""
    by_rest: dict[Configuration, list[Run]] = {}
    for run in report.runs:
        if run.configuration.has_format:
            by_rest.setdefault(run.configuration.without_formats, []).append(run)
    plain = plain_runs(report)
    return tuple(
        Group(rest, next((run for run in plain if run.configuration == rest), None), tuple(runs))
        for rest, runs in by_rest.items()
    )


def label(run: Run) -> str:
    """The formats of a run: ``kv:fp8_e4m3``."""
    return " + ".join(run.configuration.formats) or NO_FORMAT
