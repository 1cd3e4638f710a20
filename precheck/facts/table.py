"""Reading the tables of facts that are next to the code."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from typing import TypeVar

import msgspec

Table = TypeVar("Table")


def read_table(name: str, record: type[Table]) -> Table:
    """The content of a table of this folder, checked against its dataclass.

    Args:
        name: of the file.
        record: a dataclass with the table's fields.

    Raises:
        msgspec.ValidationError: a row has other fields; a test reads every table.
    """
    text = files("precheck.facts").joinpath(name).read_text(encoding="utf-8")
    return msgspec.convert(tomllib.loads(text), record)
