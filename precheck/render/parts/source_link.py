"""Where a line of modeling code can be read on the web."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.records.report import Report

_RELEASE = re.compile(r"\d+\.\d+\.\d+")


def source_link(report: Report, *, source: str | None, source_file: str | None) -> str | None:
    """The line on GitHub, at the release that was measured; None for other code than transformers'.

    **Source**: the layout of https://github.com/huggingface/transformers, whose releases are tagged
    ``v5.23.0``.
    """
    version = report.environment.libraries.get("transformers", "")
    line = (source or "").rpartition(":")[2]
    if source_file is None or not re.fullmatch(r"transformers/[\w/]+\.py", source_file):
        return None
    if not _RELEASE.fullmatch(version) or not (line.isascii() and line.isdigit()):
        return None
    return f"https://github.com/huggingface/transformers/blob/v{version}/src/{source_file}#L{line}"
