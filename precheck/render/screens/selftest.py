"""What a self-test found, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.records.finding import Verdict
from precheck.render.parts.printed import printed
from precheck.render.parts.words import VERDICT_MARKS, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.selftest import Check


def render_selftest(checks: Sequence[Check], *, width: int, colour: bool) -> str:
    """A row for each check, and what follows from them."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(ratio=3, overflow="fold")
    grid.add_column(ratio=2, overflow="fold")
    for each in checks:
        mark = VERDICT_MARKS[_verdict(each)]
        grid.add_row(
            Text(f"{mark.symbol} {shown(each.what)}", style=mark.style), Text(shown(each.found))
        )
    failed = [each for each in checks if each.is_needed and not each.holds]
    odd = [each for each in checks if not each.is_needed and not each.holds]
    if failed:
        end = Text("Do not trust verdicts on this device.", style="bold red")
    elif odd:
        end = Text("Verdicts can be trusted; the device has its peculiarities (!).", style="bold")
    else:
        end = Text("Verdicts can be trusted here.", style="bold green")
    return printed(grid, Text(), end, width=min(width, 110), colour=colour)


def _verdict(check: Check) -> Verdict:
    if check.holds:
        return Verdict.SAFE
    return Verdict.OVERFLOW if check.is_needed else Verdict.LOW_HEADROOM
