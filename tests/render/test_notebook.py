"""A report in a notebook: the HTML report in a frame, in which nothing acts."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.render import RENDERERS, Format
from tests import hand_made
from tests.render.evil import evil_report

if TYPE_CHECKING:
    from precheck.records.report import Report

SAVED = Path(__file__).parents[1] / "golden" / "qwen2-eager.json"
REPORTS = {
    "qwen2-eager": judge(hand_made.qwen2_eager(), version="0.1.0"),
    "evil": evil_report(),
}


class Fragment(HTMLParser):
    """What a browser makes of it: the tags, their attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def html_of(report: Report) -> str:
    return report._repr_html_()


@pytest.mark.parametrize("story", list(REPORTS))
def test_it_is_the_html_report_in_a_frame_in_which_no_script_runs(story: str) -> None:
    report = REPORTS[story]
    fragment = Fragment(html_of(report))
    assert fragment.open == []
    assert [tag for tag, _ in fragment.tags] == ["div", "p", "br", "iframe"]
    frame = fragment.tags[-1][1]
    assert frame["srcdoc"] == RENDERERS[Format.HTML].render(report)
    assert "allow-scripts" not in (frame["sandbox"] or "allow-scripts")
    assert "allow-same-origin" not in (frame["sandbox"] or "")


def test_the_verdict_is_there_where_frames_are_left_out() -> None:
    fragment = Fragment(html_of(REPORTS["qwen2-eager"]))
    assert "demo:qwen2-eager: " in fragment.text
    assert "float16 + eager: overflow" in fragment.text
    assert "<script>alert(1)</script>" in Fragment(html_of(REPORTS["evil"])).text, "as text"


def test_links_leave_the_frame() -> None:
    frame = Fragment(html_of(REPORTS["qwen2-eager"])).tags[-1][1]
    links = [found for tag, found in Page(frame["srcdoc"] or "").tags if tag == "a"]
    outside = [link for link in links if not (link["href"] or "").startswith("#")]
    assert len(outside) > 3
    assert {(link["target"], link["rel"]) for link in outside} == {("_blank", "noreferrer")}


class Page(Fragment):
    """A whole page, whose void elements are never closed."""

    def handle_endtag(self, tag: str) -> None:
        """Nothing is checked."""


def test_a_saved_report_is_shown_without_torch() -> None:
    program = (
        "import pathlib, sys, precheck\n"
        f"report = precheck.read_report(pathlib.Path({str(SAVED)!r}))\n"
        "assert 'iframe' in report._repr_html_()\n"
        "print(sorted({'torch', 'transformers', 'safetensors'} & set(sys.modules)))\n"
    )
    ended = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")
