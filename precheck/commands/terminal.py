"""Where a scan meets the terminal and the disk: progress on stderr, reports to stdout or files."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
)

from precheck.errors import UsageError
from precheck.records.progress import Announcement, Observer, Step
from precheck.records.quantities import duration, num_bytes
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def progress(*, quiet: bool) -> Iterator[Observer]:
    """An observer that shows a scan on stderr: a bar on a terminal, else the announcements."""
    # while it draws, rich puts something of its own in the place of sys.stderr
    stream: Any = None if sys.stderr is None else _UntilClosed(sys.stderr)
    console = Console(file=stream, stderr=True)
    if quiet:
        yield _problem_line
    elif not console.file.isatty() or console.is_dumb_terminal:  # FORCE_COLOR makes no terminal
        yield _plain_line
    else:
        with Progress(
            BarColumn(bar_width=20),
            TaskProgressColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            refresh_per_second=4,
        ) as bar:
            yield _on(bar)


class _UntilClosed:
    """A stream to draw on, whose terminal may be closed at any time."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            _write(self._stream, text)
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _on(bar: Progress) -> Observer:
    tasks: list[TaskID] = []

    def show(event: Announcement | Step) -> None:
        match event:
            case Announcement(text=text):
                bar.console.print(shown(text), markup=False, highlight=False, soft_wrap=True)
            case Step():
                # Not before the first step: a bar of zero steps says nothing during a download.
                if not tasks:
                    tasks.append(bar.add_task(event.run, total=1.0))
                bar.update(tasks[0], description=_described(event), completed=event.share)

    return show


def _described(step: Step) -> str:
    left = "" if step.seconds_left is None else f"{duration(step.seconds_left)} left  "
    read = ""
    if step.total_bytes:
        read = f"read {num_bytes(step.bytes_read)} of {num_bytes(step.total_bytes)}  "
    return f"{left}{read}{shown(step.run)}  {shown(step.unit)}"


def _plain_line(event: Announcement | Step) -> None:
    if isinstance(event, Announcement):
        say(event.text)


def _problem_line(event: Announcement | Step) -> None:
    if isinstance(event, Announcement) and event.is_problem:
        say(event.text)


def has_colour() -> bool:
    """Whether stdout shows colours or ``FORCE_COLOR`` says so; never with ``NO_COLOR``."""
    console = Console()
    return console.color_system is not None and not console.no_color


def say(text: str) -> None:
    """One line on stderr; what a terminal would act on (a name may hold it) is written out."""
    write_stderr(f"{shown(text)}\n")


def write_stderr(text: str) -> None:
    """Writes text to stderr as it is; does nothing where stderr is closed."""
    with contextlib.suppress(OSError):
        _write(sys.stderr, text)


def write_stdout(text: str) -> None:
    """Text on stdout; a reader that went away early (``| head``) is no error.

    Raises:
        UsageError: it could not be written.
    """
    try:
        _write(sys.stdout, text if text.endswith("\n") else f"{text}\n")
    except BrokenPipeError:
        return
    except OSError as error:
        raise UsageError(
            f"cannot write to stdout: {error.strerror}", hint="write to a file: -o report.json"
        ) from error


def _write(stream: TextIO | None, text: str) -> None:
    if stream is None:  # closed by whoever started the process
        return
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # Python flushes it again at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace the file by the content, or leave it as it was; it keeps its permissions.

    Raises:
        UsageError: it could not be written.
    """
    path = path.resolve()  # a link stays a link
    unfinished = path.with_name(f".precheck-{secrets.token_hex(16)}.tmp")
    try:
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
        # O_EXCL: it is ours alone, and no link that somebody has put there
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(unfinished, flags, 0o666 if mode is None else 0o600)
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(content if isinstance(content, bytes) else content.encode())
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot write report: {str(path)!r}: {error.strerror}", hint="choose another place"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
