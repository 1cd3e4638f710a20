"""What to use on each device, with the line to paste, and why not the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.advice import Recommendation
    from precheck.records.report import Report


def advice(report: Report) -> Iterator[RenderableType]:
    """A block for every configuration that is recommended somewhere, the first device's first."""
    same: dict[tuple[str | None, str | None], list[Recommendation]] = {}
    for each in report.recommendations:
        same.setdefault((each.dtype, each.attn_implementation), []).append(each)
    for (dtype, attn_implementation), devices in same.items():
        if dtype is None:
            yield from _nothing(devices)
        else:
            yield Text(shown(f"Use {dtype} + {attn_implementation}"), style="bold")
            yield from _use(devices)


def _use(devices: list[Recommendation]) -> Iterator[RenderableType]:
    first = devices[0]
    for line in first.snippets.get("transformers", "").split("\n"):
        yield Text(f"    {shown(line)}", style="cyan", overflow="fold")
    grid = _grid()
    for label, each in zip(["on", *[""] * len(devices)], devices, strict=False):
        grid.add_row("", label, _device(each))
    grid.add_row("", "because", Text(shown("; ".join(_reasons(first)))))
    whys: dict[str, list[str]] = {}
    for rejected in first.rejected:
        name = f"{rejected.dtype} + {rejected.attn_implementation}"
        whys.setdefault(rejected.why, []).append(name)
    for label, (why, names) in zip(["not", *[""] * len(whys)], whys.items(), strict=False):
        grid.add_row("", label, Text(f"{shown(', '.join(names))}: {shown(why)}"))
    yield grid


def _nothing(devices: list[Recommendation]) -> Iterator[RenderableType]:
    yield Text("Nothing can be recommended", style="bold")
    grid = _grid()
    for label, each in zip(["on", *[""] * len(devices)], devices, strict=False):
        grid.add_row("", label, Text(shown(each.target.name)))
    grid.add_row("", "because", Text(shown("; ".join(devices[0].reasons))))
    yield grid


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=0)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _device(each: Recommendation) -> Text:
    """The device, and whether the advice was measured there; that reason is always the last."""
    how = each.reasons[-1] if each.confidence == "predicted" and each.reasons else each.confidence
    return Text.assemble((shown(each.target.name), "bold"), f": {shown(how)}")


def _reasons(each: Recommendation) -> tuple[str, ...]:
    return each.reasons[:-1] if each.confidence == "predicted" else each.reasons
