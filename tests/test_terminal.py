"""Progress as a person sees it."""

from __future__ import annotations

import io
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
