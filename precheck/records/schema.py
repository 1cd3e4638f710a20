"""The JSON Schema of reports, made from the records (``docs/report.schema.json``)."""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import msgspec

from precheck.records.report import SCHEMA, Report


def json_schema() -> dict[str, Any]:
    """The schema of draft 2020-12; reports of earlier versions are valid, fields may be added.

    >>> json_schema()["$defs"]["Report"]["properties"]["schema"]["const"]
    'precheck/1'
    """
    schema = msgspec.json.schema(Report)
    schema["$defs"]["Report"]["properties"]["schema"] = {"const": SCHEMA}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A precheck report",
        **{name: _dedented(part) for name, part in schema.items()},
    }


def _dedented(tree: object) -> object:
    """Descriptions are docstrings, whose indentation Python keeps or not, by version."""
    if isinstance(tree, dict):
        return {
            name: cleandoc(part)
            if name == "description" and isinstance(part, str)
            else _dedented(part)
            for name, part in tree.items()
        }
    return [_dedented(part) for part in tree] if isinstance(tree, list) else tree
