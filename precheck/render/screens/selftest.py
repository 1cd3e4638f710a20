"""What a self-test found, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Verdict
from precheck.render.parts.printed import printed
from precheck.render.parts.words import VERDICT_MARKS, shown
from precheck.render.parts.wrapping import labelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.selftest import Check


def render_selftest(checks: Sequence[Check], *, width: int, colour: bool) -> str:
    """A line for each check, and what follows from them."""
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
    lines = labelled(_line(check) for check in checks)
    return printed(*lines, Text(), end, width=min(width, 110), colour=colour)


def _line(check: Check) -> tuple[Text, Text]:
    mark = VERDICT_MARKS[_verdict(check)]
    what = (shown(check.what), mark.style)
    return Text(mark.symbol, style=mark.style), Text.assemble(what, f": {shown(check.found)}")


def _verdict(check: Check) -> Verdict:
    if check.holds:
        return Verdict.SAFE
    return Verdict.OVERFLOW if check.is_needed else Verdict.LOW_HEADROOM
