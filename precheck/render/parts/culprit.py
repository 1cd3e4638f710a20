"""The operation that broke a run, and the layers around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.loss import relative_error
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Accumulation
from precheck.records.quantities import counted, listed, magnitude, percent, times
from precheck.records.traces import Section
from precheck.render.parts.columns import Column, table
from precheck.render.parts.words import DASH, VERDICT_MARKS, shown

if TYPE_CHECKING:
    from precheck.records.report import Report, Run
    from precheck.records.traces import LayerTrace, Overflow, Symptom

_REACH = 2
"""Layers shown before and after the one that matters."""
_LONGEST_SYMPTOM = 160


class Focus(NamedTuple):
    """The run and the layer that a reader should look at."""

    run: Run
    section: Section | None
    layer: int | None


def focus(report: Report) -> Focus | None:
    """The gravest run with a place: an overflow, else where accuracy is lost.

    What breaks without a format comes first.
    """
    runs = sorted(enumerate(report.runs), key=lambda pair: pair[1].configuration.has_format)
    for verdict in (Verdict.OVERFLOW, Verdict.DEGRADED):
        for index, run in runs:
            if run.verdict is not verdict:
                continue
            if run.first_overflow is not None:
                return Focus(run, run.first_overflow.section, run.first_overflow.layer)
            for finding in report.findings:
                if finding.layer is not None and finding.runs == (index,):
                    return Focus(run, finding.section, finding.layer)
    return None


def culprit_panel(report: Report, *, width: int) -> Panel | None:
    """What broke the gravest run; None where no operation did."""
    at = focus(report)
    if at is None or at.run.first_overflow is None:
        return None
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in culprit_facts(report, at.run, at.run.first_overflow):
        grid.add_row(label, value)
    style = VERDICT_MARKS[at.run.verdict].style
    return Panel(
        grid,
        title=Text(f"culprit of {shown(at.run.name)}", style=style),
        title_align="left",
        border_style="dim",
        box=box.ROUNDED,
        width=width,
        padding=(0, 1),
    )


def culprit_facts(report: Report, run: Run, overflow: Overflow) -> list[tuple[str, Text]]:
    """Label and value of every fact about an overflow; a label may go on in the next line."""
    place = overflow.module
    if overflow.layer is not None:
        place += f"  ({layer_of_all(report, overflow)})"
    facts = [
        ("where", Text(shown(place), style="bold")),
        ("operation", Text(f"{shown(overflow.op)} at {shown(overflow.source)}", style="bold")),
        ("code", Text(shown(overflow.code), style="cyan")),
        ("what", Text(overflow.event)),
        ("size", Text(_size(run, overflow))),
        ("probes", Text(_probes(report, overflow))),
    ]
    steps = [
        generation.broken_step
        for generation in run.generations
        if generation.broken_step is not None
    ]
    if steps and min(steps) > 0:
        facts.append(("when", Text(f"after {counted(min(steps), 'generated token')}")))
    if overflow.absorbed:
        facts.append(("then", Text(_absorbed(run))))
    if run.stopped_after is not None:
        facts.append(("stopped", Text(f"after {shown(run.stopped_after)}: NaN everywhere")))
    if run.symptom is not None:
        seen = _seen(run.symptom)
        labels = ("user sees", *[""] * len(seen))
        facts += [(label, Text(shown(text))) for label, text in zip(labels, seen, strict=False)]
    return [(label, value) for label, value in facts if value.plain]


def layer_of_all(report: Report, overflow: Overflow) -> str:
    """``decoder layer 3 of 0-5``; how many other parts have is not in the report."""
    last = report.model.num_decoder_layers - 1
    of = f" of 0-{last}" if overflow.section is Section.DECODER and last > 0 else ""
    return f"{overflow.section} layer {overflow.layer}{of}"


def _seen(symptom: Symptom) -> list[str]:
    """What a user sees, a line each."""
    texts = (("greedy: ", symptom.greedy), ("sampling: ", symptom.sampling), ("", symptom.answer))
    return [f"{way}{text[:_LONGEST_SYMPTOM]}" for way, text in texts if text is not None]


def _absorbed(run: Run) -> str:
    made_finite = "later operations make it finite again"
    is_wrong = run.verdict is Verdict.DEGRADED
    return f"{made_finite}: no NaN, but wrong numbers" if is_wrong else made_finite


def _size(run: Run, overflow: Overflow) -> str:
    if overflow.mechanism is Mechanism.MASK and not overflow.is_out_of_range:
        return ""
    maximum = f"{run.dtype}'s maximum of {magnitude(overflow.limit)}"
    if overflow.reference_abs_max is None or not overflow.limit:
        return f"beyond {maximum}"
    value = magnitude(overflow.reference_abs_max)
    if overflow.partial_sum is not None:
        sums = magnitude(overflow.partial_sum)
        return f"{value}, from partial sums of up to {sums}, beyond {maximum}"
    ratio = overflow.reference_abs_max / overflow.limit
    relation = times(ratio) if ratio > 1 else "within"
    return f"{value} in float32, {relation} {maximum}"


def _probes(report: Report, overflow: Overflow) -> str:
    if len(overflow.probes) == len(report.probes):
        return f"all {len(overflow.probes)}"
    named = tuple(_probe(overflow, name) for name in overflow.probes)
    return f"{len(named)} of {counted(len(report.probes), 'probe')}: {shown(listed(named, most=5))}"


def _probe(overflow: Overflow, name: str) -> str:
    position = overflow.first_positions.get(name)
    return name if position is None else f"{name} (token {position})"


def layers_around(report: Report, *, width: int) -> Table | None:
    """A few layers before and after the one that matters, against the float32 run."""
    columns = columns_around(report)
    return table(columns, width=width) if columns else None


def columns_around(report: Report) -> list[Column]:
    """The same as columns; none where no layer matters more than others."""
    at = focus(report)
    if at is None or at.layer is None or not at.run.layers:
        return []
    near = [
        trace
        for trace in at.run.layers
        if trace.section is at.section and abs(trace.index - at.layer) <= _REACH
    ]
    siblings = [
        run
        for run in report.runs
        if run.attn_implementation == at.run.attn_implementation
        and (run is at.run or not run.configuration.has_format)
    ]
    return [
        Column(
            header="\nlayer", cells=[_layer_cell(trace, at=at) for trace in near], justify="left"
        ),
        _mechanism_column(report, at, near=near),
        *(
            Column(
                header=f"{_short(run)}\nmax |x|",
                cells=[size_cell(_same(run, trace)) for trace in near],
                rank=rank if run is not at.run else 0,
            )
            for rank, run in enumerate(siblings, start=3)
        ),
        *(
            Column(
                header=f"{_short(run)}\nrel. error",
                cells=[_error_cell(_same(run, trace)) for trace in near],
                rank=1 if run is at.run else 2,
            )
            for run in siblings
            if run.dtype != report.reference.dtype
        ),
    ]


def _short(run: Run) -> str:
    sums = " sums" if run.accumulation is Accumulation.FLOAT16 else ""
    return " ".join((f"{run.dtype.short}{sums}", *run.configuration.formats))


def _mechanism_column(report: Report, at: Focus, *, near: list[LayerTrace]) -> Column:
    """What the layers' values of the culprit's mechanism are, where they were measured."""
    overflow = at.run.first_overflow
    mechanism = overflow.mechanism if overflow else Mechanism.ATTENTION_SCORES
    sizes = {
        (row.section, row.layer): row.abs_max
        for row in sorted(report.headroom, key=lambda row: row.abs_max)
        if row.mechanism is mechanism
        and row.attn_implementation in {None, at.run.attn_implementation}
    }
    nearby = [sizes.get((trace.section, trace.index)) for trace in near]
    cells = [Text(DASH if size is None else magnitude(size)) for size in nearby]
    return Column(header=mechanism.replace("_", "\n", 1), cells=cells, rank=1)


def _layer_cell(trace: LayerTrace, *, at: Focus) -> Text:
    if trace.index == at.layer:
        return Text(f"▸ {trace.index}", style=VERDICT_MARKS[at.run.verdict].style)
    return Text(f"  {trace.index}")


def _same(run: Run, trace: LayerTrace) -> LayerTrace | None:
    return next(
        (
            other
            for other in run.layers
            if other.section is trace.section and other.index == trace.index
        ),
        None,
    )


def size_cell(trace: LayerTrace | None) -> Text:
    """The largest finite value of a layer, and what in it is not finite."""
    if trace is None:
        return Text(DASH, style="dim")
    faults = [name for name, n in (("NaN", trace.num_nan), ("inf", trace.num_inf)) if n]
    finite = [] if trace.abs_max is None else [magnitude(trace.abs_max)]
    words = ", then ".join(filter(None, (*finite, " and ".join(faults))))
    return Text(words or DASH, style="red" if faults else "")


def _error_cell(trace: LayerTrace | None) -> Text:
    error = None if trace is None else relative_error(trace)
    return Text(DASH, style="dim") if error is None else Text(percent(error))
