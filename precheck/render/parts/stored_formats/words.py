"""What formats cost, in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.finding import USABLE, VERBS, Verdict
from precheck.records.loss import loss
from precheck.records.quantities import listed, nats
from precheck.render.parts.stored_formats.groups import groups, label

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from precheck.records.report import Report, Run

_VERBS = {
    Verdict.OVERFLOW: (VERBS[Verdict.OVERFLOW], "overflow"),
    Verdict.DEGRADED: ("costs accuracy", "cost accuracy"),
    Verdict.FAILED: (VERBS[Verdict.FAILED], VERBS[Verdict.FAILED]),
}
"""What one format does that is not usable, and what several do."""
_MOST = 3


def costly(report: Report, *, besides: Collection[Run] = ()) -> tuple[Run, ...]:
    """The runs with a format that are not usable, though the same run without it is.

    Args:
        report: the scan.
        besides: runs that are told of elsewhere.
    """
    return tuple(
        run
        for group in groups(report)
        if group.plain is None or group.plain.verdict in USABLE
        for run in group.runs
        if run.verdict in _VERBS and not any(run is other for other in besides)
    )


def cost_words(report: Report, runs: tuple[Run, ...]) -> str:
    """What these runs' formats do: ``kv:int4 costs accuracy (KL 0.16)``."""
    return "; ".join(_clauses(report, runs))


def _clauses(report: Report, runs: tuple[Run, ...]) -> Iterator[str]:
    is_one_group = len(groups(report)) == 1
    for verdict, (does, do) in _VERBS.items():
        alike = [run for run in runs if run.verdict is verdict]
        names = [label(run) if is_one_group else run.name for run in alike]
        if len(alike) == 1:
            yield f"{names[0]} {does}{_figure(alike[0])}"
        elif alike:
            named = tuple(f"{name}{_figure(run)}" for name, run in zip(names, alike, strict=True))
            yield f"{listed(named, most=_MOST)} {do}"


def _figure(run: Run) -> str:
    figure = loss(run).kl_divergence
    is_told = run.verdict is Verdict.DEGRADED and figure is not None
    return f" (KL {nats(figure)})" if is_told and figure is not None else ""
