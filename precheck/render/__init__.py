"""Report in, text out."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from precheck.render.console_report import ConsoleReport, render_console
from precheck.render.json_report import JsonReport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.records.report import Report

__all__ = ["RENDERERS", "Renderer", "render_console"]


class Renderer(Protocol):
    """Turns a report into the text of a file."""

    @property
    def extension(self) -> str:
        """The suffix of its files, ``.json``."""

    def render(self, report: Report) -> str:
        """The whole text; nothing is read or written."""


RENDERERS: Mapping[str, Renderer] = MappingProxyType(
    {each.extension: each for each in (ConsoleReport(), JsonReport())}
)
"""By the suffix of the file that is written."""
