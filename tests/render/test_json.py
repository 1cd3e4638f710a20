from __future__ import annotations

import json
from dataclasses import replace

import pytest

from precheck.judge import judge
from precheck.records.report import Report
from precheck.records.traces import Symptom
from precheck.render import RENDERERS, Format
from tests import hand_made

JSON = RENDERERS[Format.JSON]


def test_the_report_is_read_back_as_it_was() -> None:
    report = judge(hand_made.qwen2_eager(), version="0.1.0")
    assert Report.from_dict(json.loads(JSON.render(report))) == report


def test_text_of_any_language_is_readable_in_the_file() -> None:
    text = JSON.render(judge(hand_made.qwen2_eager(), version="0.1.0"))
    assert "上海" in text
    assert text.endswith("}\n")


def test_half_a_surrogate_pair_can_be_written_and_read_back() -> None:
    scan = hand_made.qwen2_eager()
    broken = replace(scan.runs[3], symptom=Symptom(greedy="a\udc80", sampling=""))
    report = judge(replace(scan, runs=(*scan.runs[:3], broken)), version="0.1.0")
    text = JSON.render(report).encode("utf-8").decode("utf-8")
    assert Report.from_dict(json.loads(text)) == report


@pytest.mark.parametrize(
    "text", ["\x9b31m", "\u202eabc", "\u2066", "\u200f", "\x85", "\u2028", "\U000e0001", "a\udc80"]
)
def test_what_acts_on_a_terminal_is_escaped_and_read_back(text: str) -> None:
    scan = hand_made.qwen2_eager()
    broken = replace(scan.runs[3], symptom=Symptom(greedy=text, sampling=""))
    report = judge(replace(scan, runs=(*scan.runs[:3], broken)), version="0.1.0")
    written = JSON.render(report)
    assert all(character.isprintable() or character == "\n" for character in written)
    assert Report.from_dict(json.loads(written)) == report


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_is_refused(value: float) -> None:
    scan = hand_made.measurements()
    rows = (replace(scan.headroom[0], abs_max=value), *scan.headroom[1:])
    report = replace(judge(scan, version="0.1.0"), headroom=rows)
    with pytest.raises(ValueError, match="not JSON compliant"):
        JSON.render(report)
