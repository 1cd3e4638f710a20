"""A record as plain data, and whether plain data is a report."""

from __future__ import annotations

from typing import Any

import msgspec

from precheck.errors import ReportError

LARGEST = 2**53
"""Beyond it other readers of JSON round integers; no count or size of a model comes near."""
DEEPEST = 64
"""Levels; a quantisation's settings, which are the checkpoint's own, have the most."""


def plain(record: object) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers, ready for ``json.dumps``.

    Args:
        record: a dataclass of this room.
    """
    fields = msgspec.to_builtins(record)
    assert isinstance(fields, dict)  # noqa: S101  a dataclass always becomes a dict
    return fields


def within_bounds(settings: dict[str, Any] | None) -> dict[str, Any] | None:
    """A checkpoint's own settings as a record can hold them.

    Integers beyond ``LARGEST`` become text, and what is nested deeper than a report can be is
    left out.
    """
    return None if settings is None else {key: _bounded(settings[key], 1) for key in settings}


def _bounded(part: object, depth: int) -> object:
    if isinstance(part, dict | list) and depth > DEEPEST // 2:
        return None
    if isinstance(part, dict):
        return {str(key): _bounded(value, depth + 1) for key, value in part.items()}
    if isinstance(part, list):
        return [_bounded(value, depth + 1) for value in part]
    return str(part) if isinstance(part, int) and abs(part) > LARGEST else part


def check_bounds(tree: object) -> None:
    """Checks that data is such as a scan can have written: its integers, and how deep it is.

    Raises:
        ValueError: it is not; says where.
    """
    left: list[tuple[object, str, int]] = [(tree, "$", 0)]
    while left:
        part, path, depth = left.pop()
        if depth > DEEPEST:
            raise ValueError(f"more than {DEEPEST} levels - at `{path[:80]}`")
        if isinstance(part, dict):
            left.extend((value, f"{path}.{key}", depth + 1) for key, value in part.items())
        elif isinstance(part, list):
            left.extend((value, f"{path}[{i}]", depth + 1) for i, value in enumerate(part))
        elif isinstance(part, int) and abs(part) > LARGEST:
            raise ValueError(f"an integer of more than {LARGEST:,} - at `{path}`")


def check_schema(plain: object, expected: str) -> None:
    """Nothing, if this is a report of the schema that is expected.

    Raises:
        ReportError: it is of another schema, or no report at all.
    """
    schema = plain.get("schema") if isinstance(plain, dict) else None
    if (
        not isinstance(plain, dict)
        or not isinstance(schema, str)
        or "precheck_version" not in plain
    ):
        raise ReportError(
            f"not a precheck report (expected an object with schema {expected!r})",
            hint="write one: precheck scan MODEL -o report.json",
        )
    if schema != expected:
        raise ReportError(
            f"report schema not readable: {schema!r} (expected {expected!r})",
            hint=written_by(plain) or "read it with the precheck that wrote it",
        )


def written_by(plain: dict[str, Any]) -> str | None:
    """Which precheck to read it with; None where the report does not say."""
    version = plain.get("precheck_version")
    if not isinstance(version, str):
        return None
    return f"precheck {version[:40]} wrote it: read it with that version or a newer one"
