"""Reports of any content that the records allow, for laws that hold for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from precheck.records.report import Report

FINITE = st.floats(allow_nan=False, allow_infinity=False)
COUNT = st.integers(min_value=0, max_value=2**40)


def anything(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, as deep as the records go."""
    arguments = get_args(kind)
    if kind in {str, int, float, bool, Any}:
        plain = {str: st.text(max_size=8), int: COUNT, float: FINITE, bool: st.booleans()}
        return plain.get(kind, st.none() | COUNT | st.text(max_size=8))
    if get_origin(kind) in {Union, UnionType}:
        return st.one_of(
            *(st.none() if argument is type(None) else anything(argument) for argument in arguments)
        )
    if get_origin(kind) is tuple:
        return st.lists(anything(arguments[0]), max_size=2).map(tuple)
    if get_origin(kind) in {dict, Mapping}:
        return st.dictionaries(anything(arguments[0]), anything(arguments[1]), max_size=2)
    if issubclass(kind, StrEnum):
        return st.sampled_from(list(kind))
    assert is_dataclass(kind)
    assert isinstance(kind, type)
    hints = get_type_hints(kind)
    return st.builds(kind, **{field.name: anything(hints[field.name]) for field in fields(kind)})


def reports() -> st.SearchStrategy[Report]:
    hints = get_type_hints(Report)
    parts = {field.name: anything(hints[field.name]) for field in fields(Report)}
    return st.builds(Report, **{**parts, "schema": st.just("precheck/1")}).map(_with_real_runs)


def _with_real_runs(report: Report) -> Report:
    """Findings are about runs that are there."""
    number = len(report.runs)
    return replace(
        report,
        findings=tuple(
            replace(finding, runs=tuple(index % number for index in finding.runs) if number else ())
            for finding in report.findings
        ),
    )
