from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings

import precheck
from precheck.records.schema import json_schema
from tests.any_report import reports

if TYPE_CHECKING:
    from precheck.records.report import Report

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "report.schema.json"
EARLIER = sorted((ROOT / "tests" / "data" / "reports").glob("*.json"))


def test_the_published_schema_is_that_of_the_records() -> None:
    text = json.dumps(json_schema(), indent=2) + "\n"
    if os.environ.get("PRECHECK_UPDATE_GOLDEN") == "1":
        PUBLISHED.write_text(text, encoding="utf-8")
    assert PUBLISHED.read_text(encoding="utf-8") == text, "make golden rewrites it"


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(report=reports())
def test_every_report_is_valid(report: Report) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(_plain(report))


@pytest.mark.parametrize("path", EARLIER, ids=lambda path: path.stem)
def test_reports_of_earlier_versions_are_valid_and_are_read(path: Path) -> None:
    plain = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(json_schema()).validate(plain)
    report = precheck.read_report(path)
    assert sum(run.verdict == "overflow" for run in report.runs) == 1
    assert report.runs[3].first_overflow is not None
    assert report.runs[3].first_overflow.source_file is None


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "precheck/2"},
        {"runs": None},
        {"seed": "0"},
        {"complete": 1.5},
    ],
)
def test_what_is_no_report_is_not_valid(change: dict[str, object]) -> None:
    plain = json.loads(EARLIER[0].read_text(encoding="utf-8")) | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(json_schema()).validate(plain)


def _plain(report: Report) -> object:
    return json.loads(json.dumps(report.to_dict(), allow_nan=False))
