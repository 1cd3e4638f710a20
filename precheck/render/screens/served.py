"""What a server behaves like, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from precheck.records.quantities import nats, percent
from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.served.words import legend, server_lines
from precheck.render.parts.words import DASH, SEVERITY_MARKS, shown
from precheck.render.parts.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.outcomes.served import ConfigurationDistance, Served


def render_served(served: Served, *, width: int, colour: bool) -> str:
    """Everything, for a terminal of this width; the answer comes first.

    Args:
        served: what was found.
        width: columns.
        colour: whether the terminal shows colours.
    """
    return printed(Group(*_blocks(served, width=width)), width=width, colour=colour)


def _blocks(served: Served, *, width: int) -> Iterator[RenderableType]:
    mark, style = ("✗", "red") if served.has_error else ("✓", "green")
    if not served.has_error and not served.like:
        mark, style = "?", "yellow"
    yield wrapped(
        Text(f"{mark} {shown(served.server.url)} {served.sentence}", style=f"bold {style}")
    )
    yield from (wrapped(Text(shown(line)), indent=2) for line in server_lines(served))
    for finding in served.findings:
        its = SEVERITY_MARKS[finding.severity]
        yield Text()
        yield wrapped(
            Text(f"{its.symbol} {finding.code}: {shown(finding.message)}", style=its.style)
        )
        if finding.advice:
            yield wrapped(Text(shown(finding.advice)), indent=2)
    if served.distances:
        yield Text()
        yield table(_columns(served), width=width)
        yield wrapped(Text(legend(served), style="dim"))


def _columns(served: Served) -> tuple[Column, ...]:
    rows = served.distances
    like, nearest = served.fingerprint.like, served.fingerprint.nearest

    def name(index: int, row: ConfigurationDistance) -> Text:
        mark = "→ " if index in like else "  "
        return Text(f"{mark}{row.configuration}", style="bold" if index == nearest else "")

    def figures(header: str, values: list[float | None], *, rank: int = 0) -> Column:
        cells = [Text(DASH if value is None else nats(value)) for value in values]
        return Column(header=header, cells=cells, rank=rank)

    return (
        Column(
            header="configuration",
            cells=[name(index, row) for index, row in enumerate(rows)],
            justify="left",
        ),
        figures("prompt", [row.prefill for row in rows], rank=1),
        figures("generated", [row.decoded for row in rows], rank=1),
        Column(
            header="contradicted",
            cells=[
                Text(DASH if row.contradiction is None else f"{row.contradiction:.2g}")
                for row in rows
            ],
            rank=1,
        ),
        figures("fits up to", [row.expected for row in rows], rank=1),
        Column(
            header="alike",
            cells=[Text(DASH if row.likeness is None else f"{row.likeness:.2f}") for row in rows],
            rank=3,
        ),
        figures("at most", [row.at_most for row in rows], rank=4),
        Column(
            header="same choice",
            cells=[
                Text(DASH if row.top1_agreement is None else percent(row.top1_agreement))
                for row in rows
            ],
            rank=2,
        ),
        Column(
            header="",
            cells=[Text(shown(row.failure or "")) for row in rows],
            rank=5,
            justify="left",
        ),
    )
