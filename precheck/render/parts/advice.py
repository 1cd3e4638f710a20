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
    for recommendation in report.recommendations:
        same.setdefault((recommendation.dtype, recommendation.attn_implementation), []).append(
            recommendation
        )
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
    for label, device in zip(["on", *[""] * len(devices)], devices, strict=False):
        grid.add_row("", label, _device(device))
    grid.add_row("", "because", Text(shown("; ".join(_reasons(first)))))
    whys: dict[str, list[str]] = {}
    for rejected in first.rejected:
        whys.setdefault(rejected.why, []).append(rejected.name)
    for label, (why, names) in zip(["not", *[""] * len(whys)], whys.items(), strict=False):
        grid.add_row("", label, Text(f"{shown(', '.join(names))}: {shown(why)}"))
    yield grid


def _nothing(devices: list[Recommendation]) -> Iterator[RenderableType]:
    yield Text("Nothing can be recommended", style="bold")
    grid = _grid()
    for label, device in zip(["on", *[""] * len(devices)], devices, strict=False):
        grid.add_row("", label, Text(shown(device.target.name)))
    grid.add_row("", "because", Text(shown("; ".join(devices[0].reasons))))
    yield grid


def _grid() -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=0)
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    return grid


def _device(advised: Recommendation) -> Text:
    """The device, and whether the advice was measured there; that reason is always the last."""
    how = (
        advised.reasons[-1]
        if advised.confidence == "predicted" and advised.reasons
        else advised.confidence
    )
    return Text.assemble((shown(advised.target.name), "bold"), f": {shown(how)}")


def _reasons(advised: Recommendation) -> tuple[str, ...]:
    return advised.reasons[:-1] if advised.confidence == "predicted" else advised.reasons
