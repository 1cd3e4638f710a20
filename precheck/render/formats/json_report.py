"""The report as the JSON contract has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.render.parts.json_text import json_text

if TYPE_CHECKING:
    from precheck.records.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonReport:
    """``Report.to_dict`` as text that ``Report.from_dict`` reads back."""

    extension: str = ".json"

    def render(self, report: Report) -> str:
        """The report as indented JSON that can be written as UTF-8.

        Raises:
            ValueError: a figure is not finite, which JSON cannot say and a report never holds.
        """
        return json_text(report.to_dict())
