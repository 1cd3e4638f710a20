"""Reads files that precheck wrote: reports and recipes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from precheck.errors import ReportError
from precheck.records.report import Report


def read_report(path: str | Path) -> Report:
    """The report in a JSON file that ``-o report.json`` or ``--format json`` wrote.

    Raises:
        ReportError: it is not there, not JSON, not a report, or of another major schema.
    """
    return Report.from_dict(read_json(path, what="report"))


def read_json(path: str | Path, *, what: str) -> dict[str, Any]:
    """The content of a file that precheck wrote.

    Raises:
        ReportError: it is not there, or not JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        content: dict[str, Any] = json.loads(
            text, parse_constant=_refuse_constant, parse_float=_finite_float
        )
    except OSError as error:
        raise ReportError(
            f"cannot read {what}: {str(path)!r}: {error.strerror}", hint=_WRITERS[what]
        ) from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError too
        raise ReportError(
            f"{what} is not JSON: {str(path)!r}: {error}",
            hint="was it truncated? Write it again, or copy the file again",
        ) from error
    return content


_WRITERS = {
    "report": "write one: precheck scan MODEL -o report.json",
    "recipe": "write one: precheck fix MODEL -o DIR",
}


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large for a float")
    return value
