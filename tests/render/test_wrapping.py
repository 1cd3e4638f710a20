"""Nothing that is printed is broken inside a word: addresses and paths can be opened and copied."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.text import Text

from precheck.facts.devices import find, table
from precheck.facts.findings import explanations
from precheck.judge import judge
from precheck.judge.comparison.difference import difference
from precheck.judge.gate import FailOn, gate
from precheck.records.outcomes.selftest import Check
from precheck.render import render_console
from precheck.render.parts.printed import printed
from precheck.render.parts.wrapping import Within, labelled, wrapped
from precheck.render.screens.brief import render_brief
from precheck.render.screens.devices import render_device
from precheck.render.screens.difference import render_difference
from precheck.render.screens.explanation import render_explanation
from precheck.render.screens.fix import render_fix
from precheck.render.screens.selftest import render_selftest
from tests import hand_made
from tests.judge import stories
from tests.render.test_fix_report import FIX, RECIPE
from tests.render.wide import too_wide

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.records.report import Report

ADDRESS = re.compile(r"https?://[^\s)\]]+")
LONG = "/mnt/models/" + "a-folder-with-a-long-name/" * 4 + "checkpoint"


def assert_whole(words: Iterable[str], text: str) -> None:
    for word in words:
        assert word in text, f"broken: {word}"


@given(
    words=st.lists(st.text("ab上/-", min_size=1, max_size=30), min_size=1),
    width=st.integers(1, 60),
    indent=st.integers(0, 8),
)
def test_every_word_stays_whole_and_every_line_is_as_full_as_it_can_be(
    words: list[str], width: int, indent: int
) -> None:
    text = printed(wrapped(Text(" ".join(words)), indent=indent), width=width, colour=False)
    lines = text.split("\n")
    assert text.split() == words
    room = max(16, width - indent)
    for line, following in zip(lines, [*lines[1:], None], strict=True):
        assert line.startswith(" " * indent)
        inside = line[indent:]
        assert cell_len(inside) <= room or len(inside.split()) == 1
        if following is not None:
            assert cell_len(f"{inside} {following.split()[0]}") > room


def test_texts_stand_beside_the_longest_label() -> None:
    rows = [(Text("where"), Text("one two three four five six")), (Text("operation"), Text(LONG))]
    assert printed(*labelled(rows), width=30, colour=False).split("\n") == [
        "where      one two three four",
        "           five six",
        f"operation  {LONG}",
    ]


def test_a_narrower_room_cuts_nothing_off() -> None:
    text = printed(Within(wrapped(Text(f"see {LONG} there")), 30), width=80, colour=False)
    assert text.split("\n") == ["see", LONG, "there"]


@pytest.mark.parametrize("width", [40, 80])
def test_addresses_of_explanations_are_whole(width: int) -> None:
    found = 0
    for each in explanations().values():
        addresses = ADDRESS.findall(each.text)
        found += len(addresses)
        assert_whole(addresses, render_explanation(each, width=width, colour=False))
    assert found > 50


@pytest.mark.parametrize("width", [40, 80])
def test_sources_of_devices_are_whole(width: int) -> None:
    for row in table().device:
        device = find(row.id)
        assert device.sources
        words = [word for source in device.sources for word in source.split()]
        assert_whole(words, render_device(device, width=width, colour=False))


def far_away() -> Report:
    measured = stories.gemma3()
    model = replace(measured.model, id=LONG)
    return judge(replace(measured, model=model), gpus=("T4",), version="1")


def test_a_long_path_is_whole_in_the_default_output() -> None:
    report = far_away()
    gated = gate(report, fail_on=FailOn.ERROR)
    text = render_brief(report, gated, engine="transformers", width=80, colour=False)
    assert text.count(LONG) == 3, "which model, what to use, what is next"


def test_a_long_path_is_whole_in_advice_and_commands() -> None:
    report = far_away()
    assert report.recommendation is not None
    commands = [engine.command for engine in report.recommendation.engines if engine.command]
    assert any(LONG in command for command in commands)
    text = render_console(report, width=80, colour=False)
    snippet = report.recommendation.snippets["transformers"]
    assert LONG in snippet
    assert_whole(snippet.split("\n"), text)
    assert text.count(LONG) > len(commands)


@pytest.mark.parametrize("width", [40, 80])
def test_a_long_path_is_whole_in_a_difference(width: int) -> None:
    before = judge(stories.gemma3(), version="1")
    after = replace(before, model=replace(before.model, id=LONG))
    text = render_difference(
        difference(before, after), names=("a.json", f"{LONG}.json"), width=width, colour=False
    )
    assert text.count(LONG) == 2
    assert before.model.id in text


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_difference_is_as_wide_as_the_terminal(width: int) -> None:
    names = ("/mnt/somewhere/qwen2-eager.json", "/mnt/somewhere/t5.json")
    compared = difference(
        judge(hand_made.qwen2_eager(), version="1"), judge(stories.gemma3(), version="1")
    )
    text = render_difference(compared, names=names, width=width, colour=False)
    assert too_wide(text, width=width) == []
    assert text.count(names[0]) > 2


def test_a_long_folder_is_whole_after_a_fix() -> None:
    for fix in (FIX, RECIPE, replace(FIX, notes=(f"it lies in {LONG}",))):
        text = render_fix(fix, output=LONG, width=80, colour=False)
        assert text.count(LONG) >= 2
        last = text.split("\n")[-1]
        assert last.startswith("next: ")
        assert LONG in last, "one line to copy"


def test_what_a_self_test_found_is_whole() -> None:
    checks = [Check(what="a model is loaded", holds=False, found=f"no such folder: {LONG}")]
    assert LONG in render_selftest(checks, width=80, colour=False)
