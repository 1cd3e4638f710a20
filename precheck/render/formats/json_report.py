"""The report as the JSON contract has it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
        text = json.dumps(report.to_dict(), allow_nan=False, indent=2, ensure_ascii=False)
        # A model can print half a surrogate pair, which UTF-8 cannot hold but a JSON escape can.
        return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"
