"""The HTML report inside a notebook: in a frame, so that neither page's styles reach the other.

A frame with its page in ``srcdoc`` works in Jupyter, VS Code and Colab, which show maps so.
It is sandboxed: no script runs in it, whatever a report says.

**Source**: ``Figure._repr_html_`` of
https://github.com/python-visualization/branca/blob/main/branca/element.py
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from precheck.render.formats.html_report import HtmlReport
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from precheck.records.report import Report

_FRAME = """\
<div style="position: relative; height: 640px; overflow: hidden; resize: vertical">
<p>{line}<br>If that is all you see here, trust the notebook to see the whole report.</p>
<iframe title="{line}" srcdoc="{page}" sandbox="allow-popups allow-popups-to-escape-sandbox"
 style="position: absolute; inset: 0; width: 100%; height: calc(100% - 1rem); border: 0"></iframe>
</div>
"""
"""The frame covers the line, which is for pages that leave frames out, and not the corner."""


def framed(report: Report) -> str:
    """A fragment of HTML for a notebook's output; it can be made higher at its corner."""
    page = HtmlReport().render(report)
    return _FRAME.format(line=escape(shown(repr(report))), page=escape(page))
