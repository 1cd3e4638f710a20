"""Progress as a person sees it."""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from precheck.commands import terminal
from precheck.records.progress import Announcement, Step

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)

    def console(**_options: object) -> Console:
        return Console(file=written, force_terminal=True, width=120, _environ={"TERM": "xterm"})

    monkeypatch.setattr(terminal, "Console", console)
    yield written
    assert written.getvalue().endswith("\x1b[2K"), "the bar is wiped at the end"


def step(unit: str, *, share: float, seconds_left: float | None, bytes_read: int) -> Step:
    return Step(
        run="float16 + sdpa",
        unit=unit,
        share=share,
        seconds_left=seconds_left,
        bytes_read=bytes_read,
        total_bytes=15 << 30,
    )


def test_the_bar_shows_layer_bytes_read_and_time_left(screen: io.StringIO) -> None:
    with terminal.progress(quiet=False) as observe:
        observe(Announcement(text="scanning m"))
        observe(step("model.embed_tokens", share=0.0, seconds_left=None, bytes_read=0))
        observe(step("model.layers.14", share=0.5, seconds_left=125.0, bytes_read=7 << 30))
    shown = screen.getvalue()
    assert "scanning m" in shown
    assert "50%" in shown
    assert "2 minutes left  read 7.0 GiB of 15.0 GiB  float16 + sdpa  model.layers.14" in shown


def test_without_a_checkpoint_nothing_is_read(screen: io.StringIO) -> None:
    with terminal.progress(quiet=False) as observe:
        observe(
            Step(
                run="float16 + sdpa",
                unit="layers.0",
                share=0.5,
                seconds_left=9.0,
                bytes_read=0,
                total_bytes=0,
            )
        )
    assert "read" not in screen.getvalue()
    assert "9 seconds left  float16 + sdpa  layers.0" in screen.getvalue()


def test_a_terminal_that_is_closed_while_progress_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal that says so ends the scan; drawing must not fail before."""
    master, slave = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(slave, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.progress(quiet=False) as observe:
            observe(Announcement(text="scanning"))
            os.close(master)
            for share in (0.1, 0.2):
                observe(step("layers.0", share=share, seconds_left=None, bytes_read=0))
            observe(Announcement(text="further"))


@pytest.mark.parametrize(
    ("variables", "is_terminal", "colours"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"NO_COLOR": "1"}, True, False),
        ({"FORCE_COLOR": "1"}, False, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, True, False),
    ],
)
def test_colours_where_they_are_shown_or_forced(
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    is_terminal: bool,
    colours: bool,
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", **variables}.items():
        monkeypatch.setenv(name, value)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdout", stream)
    assert terminal.has_colour() == colours


def test_forced_colours_move_no_cursor_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with terminal.progress(quiet=False) as observe:
        observe(Announcement(text="scanning m"))
        observe(step("layers.0", share=0.5, seconds_left=None, bytes_read=0))
    assert log.getvalue() == "scanning m\n"
