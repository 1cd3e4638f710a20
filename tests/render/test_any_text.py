"""Every text of a report, one after the other, tries to steer the terminal: no format lets it."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from precheck.errors import ReportError
from precheck.judge import judge
from precheck.records.report import Report
from precheck.render import RENDERERS, Format
from tests.judge import stories
from tests.render.evil import evil_report

if TYPE_CHECKING:
    from collections.abc import Iterator

ACTS = ("\x1b", "\x9b", "\u202e", "\u2066")
STEERS = "\x1b[31mred <b>\x9b31m\u202e\u2066"
REPORTS = {
    "evil": evil_report(),
    "product-on-t4": judge(stories.llama_product(), gpus=("T4 32GB",), version="1"),
    "qwen2-on-two": judge(stories.qwen2(), gpus=("T4", "A100 80GB"), version="1"),
}

_Path = tuple[str | int, ...]


def texts(tree: Any, path: _Path = ()) -> Iterator[_Path]:
    """Where the texts of a tree are."""
    if isinstance(tree, str):
        yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, each in items:
        yield from texts(each, (*path, key))


def steering(plain: dict[str, Any]) -> Iterator[tuple[_Path, Report]]:
    """The report with one of its texts exchanged; of items that are alike the first."""
    kinds: set[_Path] = set()
    for path in texts(plain):
        kind = tuple("*" if isinstance(part, int) else part for part in path)
        if kind in kinds:
            continue
        kinds.add(kind)
        changed = copy.deepcopy(plain)
        tree: Any = changed
        for part in path[:-1]:
            tree = tree[part]
        tree[path[-1]] = STEERS
        try:
            yield path, Report.from_dict(changed)
        except ReportError:
            continue  # one of a few words, such as a dtype


@pytest.mark.parametrize(
    ("story", "written_as"),
    [
        (story, each)
        for story in REPORTS
        for each in Format
        # charts take time, and are the same in each story
        if each is not Format.HTML or story == "qwen2-on-two"
    ],
)
def test_no_text_of_a_report_acts(story: str, written_as: Format) -> None:
    plain = json.loads(json.dumps(REPORTS[story].to_dict()))
    found = list(steering(plain))
    assert len(found) > 50
    for path, report in found:
        text = RENDERERS[written_as].render(report)
        assert not any(each in text for each in ACTS), path
        assert written_as is not Format.HTML or "<b>" not in text, path
