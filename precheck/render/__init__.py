"""Report in, text out."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from precheck.render.formats.baseline_report import BaselineReport
from precheck.render.formats.console_report import ConsoleReport, render_console
from precheck.render.formats.github_report import GithubReport
from precheck.render.formats.html_report import HtmlReport
from precheck.render.formats.json_report import JsonReport
from precheck.render.formats.markdown_report import MarkdownReport
from precheck.render.formats.model_card import ModelCard
from precheck.render.formats.sarif_report import SarifReport
from precheck.render.screens.brief import render_brief

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.records.report import Report

__all__ = [
    "RENDERERS",
    "SUFFIXES",
    "Format",
    "Renderer",
    "render_brief",
    "render_console",
]


class Format(StrEnum):
    """Formats that a report can be written in."""

    TABLE = "table"
    JSON = "json"
    MARKDOWN = "markdown"
    HTML = "html"
    SARIF = "sarif"
    CARD = "card"
    BASELINE = "baseline"
    GITHUB = "github"

    @property
    def is_public(self) -> bool:
        """Whether it is meant for the public, so that private data is redacted by default."""
        return self in {Format.MARKDOWN, Format.CARD}


class Renderer(Protocol):
    """Turns a report into the text of a file."""

    @property
    def extension(self) -> str:
        """The suffix of its files, ``.json``."""

    def render(self, report: Report) -> str:
        """The whole text; nothing is read or written."""


RENDERERS: Mapping[Format, Renderer] = MappingProxyType(
    {
        Format.TABLE: ConsoleReport(),
        Format.JSON: JsonReport(),
        Format.MARKDOWN: MarkdownReport(),
        Format.HTML: HtmlReport(),
        Format.SARIF: SarifReport(),
        Format.CARD: ModelCard(),
        Format.BASELINE: BaselineReport(),
        Format.GITHUB: GithubReport(),
    }
)

SUFFIXES: Mapping[str, Format] = MappingProxyType(
    {
        renderer.extension: format_
        for format_, renderer in RENDERERS.items()
        # the card is Markdown too: --card FILE; annotations are read from stdout
        if format_ not in {Format.CARD, Format.GITHUB}
    }
)
"""The format that a file's suffix chooses."""
