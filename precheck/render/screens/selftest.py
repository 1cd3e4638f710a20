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

    from precheck.records.outcomes.selftest import Check


def render_selftest(checks: Sequence[Check], *, width: int, colour: bool) -> str:
    """A row for each check, and what follows from them."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(ratio=3, overflow="fold")
    grid.add_column(ratio=2, overflow="fold")
    for check in checks:
        mark = VERDICT_MARKS[_verdict(check)]
        grid.add_row(
            Text(f"{mark.symbol} {shown(check.what)}", style=mark.style), Text(shown(check.found))
        )
    failed = [check for check in checks if check.is_needed and not check.holds]
    odd = [check for check in checks if not check.is_needed and not check.holds]
    if failed:
        end = Text("Do not trust verdicts on this device.", style="bold red")
    elif odd:
        end = Text(
            "Verdicts can be trusted here; ! marks peculiarities of the device.", style="bold"
        )
    else:
        end = Text("Verdicts can be trusted here.", style="bold green")
    return printed(grid, Text(), end, width=min(width, 110), colour=colour)


def _verdict(check: Check) -> Verdict:
    if check.holds:
        return Verdict.SAFE
    return Verdict.OVERFLOW if check.is_needed else Verdict.LOW_HEADROOM
