"""The report as a person reads it in ten seconds, in a terminal of any width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Severity
from precheck.render.parts.advice import advice
from precheck.render.parts.brief.verdict import verdict_lines
from precheck.render.parts.columns import table
from precheck.render.parts.culprit import culprit_panel, focus, layers_around
from precheck.render.parts.deployment import deployment
from precheck.render.parts.generation_table import generation_tables
from precheck.render.parts.headline import headline, identity, scope
from precheck.render.parts.intervals import interval_tables
from precheck.render.parts.layer_table import layer_tables
from precheck.render.parts.position_table import position_table, positions_title
from precheck.render.parts.printed import printed
from precheck.render.parts.run_table import run_table
from precheck.render.parts.small_tensors.table import small_tensor_tables
from precheck.render.parts.stored_formats.table import format_tables, sizes_note
from precheck.render.parts.words import SEVERITY_MARKS, VERDICT_MARKS, shown
from precheck.render.parts.wrapping import Within, Wrapped, command, labelled, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from rich.console import RenderableType

    from precheck.records.finding import Finding
    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report
    from precheck.render.parts.headline import Headline

_WIDEST_PROSE = 110
"""Columns; longer lines are hard to read, whatever room there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleReport:
    """Text for a terminal; ``all_layers`` adds every layer of every run."""

    extension: str = ".txt"
    width: int = 100
    colour: bool = False
    all_layers: bool = True

    def render(self, report: Report) -> str:
        """The report as text, with a line break at the end and no trailing blanks."""
        return render_console(
            report, width=self.width, colour=self.colour, all_layers=self.all_layers
        )


def render_console(
    report: Report,
    *,
    width: int,
    colour: bool,
    all_layers: bool = False,
    gate: Gate | None = None,
) -> str:
    """The report as text.

    Args:
        report: what to show.
        width: columns of the terminal.
        colour: with ANSI colours; no information is in the colour alone.
        all_layers: every layer of every run as well.
        gate: begin with its answer; None: with the gravest of all runs.
    """
    prose = min(width, _WIDEST_PROSE)
    renderables: list[RenderableType] = []
    sections = _sections(report, gate, prose=prose, width=width, all_layers=all_layers)
    for section in sections:
        renderables += [Text(), *section] if renderables else section
    return f"{printed(*renderables, width=width, colour=colour)}\n"


def _sections(
    report: Report, gate: Gate | None, *, prose: int, width: int, all_layers: bool
) -> Iterator[Sequence[RenderableType]]:
    """Everything there is to print, in the order of its weight."""

    def narrow(renderables: Iterable[RenderableType]) -> tuple[RenderableType, ...]:
        return tuple(Within(renderable, prose) for renderable in renderables)

    yield narrow(_head(report, gate))
    if not report.is_static:
        yield (run_table(report, width=width),)
    yield from _formats(report, prose=prose, width=width)
    yield from _proofs(report, width=width)
    yield from _positions(report, width=width)
    if (panel := culprit_panel(report, width=prose)) is not None:
        yield (panel,)
    yield from (_all_layers if all_layers else _layers_around)(report, width=width)
    for title, written in generation_tables(report, width=width):
        yield (Text(title, style="bold"), written)
    for finding in report.findings:
        yield (*narrow(_finding(finding, report=report)), *_snippet(finding))
    if codes := [row.code for row in report.findings if row.severity is not Severity.NOTE]:
        yield (Text(f"More on a finding: precheck explain {shown(codes[0])}", style="dim"),)
    yield narrow(advice(report))
    for section in deployment(report, width=prose):
        yield narrow(section)


def _formats(report: Report, *, prose: int, width: int) -> Iterator[Sequence[RenderableType]]:
    note = Text(sizes_note(report), style="dim")
    for title, written in format_tables(report, width=width):
        yield (Text(title, style="bold"), written, Within(wrapped(note), prose))


def _proofs(report: Report, *, width: int) -> Iterator[Sequence[RenderableType]]:
    for title, columns in (*interval_tables(report), *small_tensor_tables(report)):
        yield (Text(title, style="bold"), table(columns, width=width))


def _positions(report: Report, *, width: int) -> Iterator[Sequence[RenderableType]]:
    written = position_table(report, width=width)
    if written is not None:
        yield (Text(positions_title(report), style="bold"), written)


def _head(report: Report, gate: Gate | None) -> tuple[RenderableType, ...]:
    """The gate's answer, or the gravest of all runs; how far it reaches, and for which model."""
    reach = wrapped(Text(scope(report), style="dim"), indent=2)
    if gate is not None:
        return (*verdict_lines(report, gate), reach)
    which = wrapped(Text(identity(report), style="dim"), indent=2)
    return (_marked(headline(report)), reach, which)


def _marked(line: Headline) -> RenderableType:
    mark = VERDICT_MARKS[line.verdict]
    style = f"bold {mark.style}"
    return Wrapped(Text(shown(line.words), style=style), Text(mark.symbol, style=style), 2)


def _layers_around(report: Report, *, width: int) -> Iterator[Sequence[RenderableType]]:
    around = layers_around(report, width=width)
    if around is not None:
        at = focus(report)
        name = "" if at is None else f", {shown(at.run.attn_implementation)}"
        yield (Text(f"Layers around it{name}", style="bold"), around)


def _all_layers(report: Report, *, width: int) -> Iterator[Sequence[RenderableType]]:
    title = Text("Largest value after each layer", style="bold")
    for number, layers in enumerate(layer_tables(report, width=width)):
        yield (layers,) if number else (title, layers)


def _finding(finding: Finding, *, report: Report) -> Iterator[RenderableType]:
    """Code and message; what to do and what not, unless it is a note."""
    mark = SEVERITY_MARKS[finding.severity]
    label = Text(f"{mark.symbol} {shown(finding.code)} {finding.severity}", style=mark.style)
    texts = [Text(shown(_short(finding, report=report)))]
    if finding.severity is not Severity.NOTE:
        texts.append(Text(f"→ {shown(finding.advice)}"))
        if finding.in_vain:
            texts.append(Text(shown(finding.in_vain), style="dim"))
    if finding.accepted is not None:
        texts.append(Text(f"accepted: {shown(finding.accepted)}", style="green"))
    yield from labelled((Text() if number else label, text) for number, text in enumerate(texts))


def _snippet(finding: Finding) -> Iterator[RenderableType]:
    """Code to copy, each line as it is: at the margin, and never wrapped."""
    for line in finding.snippet.splitlines():
        yield command(shown(line))


def _short(finding: Finding, *, report: Report) -> str:
    """The message; of the finding that the culprit panel tells in full, the first sentence."""
    at = focus(report)
    overflow = at.run.first_overflow if at else None
    is_in_panel = overflow is not None and (finding.module, finding.source) == (
        overflow.module,
        overflow.source,
    )
    return finding.gist if is_in_panel else finding.message
