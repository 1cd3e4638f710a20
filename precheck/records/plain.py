"""A record as plain data."""

from __future__ import annotations

from typing import Any

import msgspec


def plain(record: object) -> dict[str, Any]:
    """Plain dicts, lists, strings and numbers, ready for ``json.dumps``.

    Args:
        record: a dataclass of this room.
    """
    fields = msgspec.to_builtins(record)
    assert isinstance(fields, dict)  # noqa: S101  a dataclass always becomes a dict
    return fields
