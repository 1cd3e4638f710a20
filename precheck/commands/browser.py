"""Shows a report in the browser."""

from __future__ import annotations

import tempfile
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.commands import terminal
from precheck.render import RENDERERS, Format

if TYPE_CHECKING:
    from precheck.records.report import Report


def show_in_browser(report: Report) -> None:
    """Writes it as HTML into a folder of its own, which stays: the browser reads it later."""
    path = Path(tempfile.mkdtemp(prefix="precheck-")) / "report.html"
    terminal.write_whole(path, RENDERERS[Format.HTML].render(report))
    if not webbrowser.open(path.as_uri()):
        terminal.say("no browser found")
    terminal.say(f"wrote {path}")
