"""What can go wrong outside a finding, and the exit code each error means."""

from __future__ import annotations

from difflib import get_close_matches
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class ExitCode(IntEnum):
    """Exit code of the process (``docs/exit-codes.md``)."""

    GATE_HOLDS = 0
    GATE_FAILS = 1
    USAGE = 2
    INCOMPLETE = 3
    BUG = 70
    INTERRUPTED = 130


class PrecheckError(Exception):
    """Something stopped precheck; never a finding about a model.

    Args:
        message: what failed, the value, and what was expected; lower case, no full stop.
        hint: the next thing to type or change.
    """

    exit_code = ExitCode.INCOMPLETE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint is not None:
            self.add_note(f"hint: {hint}")  # seen in a traceback; the command line has its own way


class UsageError(PrecheckError):
    """A flag, a value or a prompts file that cannot be used, or a device that is absent."""

    exit_code = ExitCode.USAGE


def unknown(what: str, value: str, known: Iterable[str], *, hint: str) -> UsageError:
    """The error for a value that is not one of those known.

    Args:
        what: kind of thing, as ``dtype``.
        value: what was given.
        known: what was expected.
        hint: follows a suggestion, if a known value is close.

    >>> unknown("dtype", "flaot16", ["float16", "float32"], hint="fp16 is one too").hint
    "did you mean 'float16'? fp16 is one too"
    """
    names = [str(name) for name in known]
    close = get_close_matches(value.lower(), names, n=1)
    return UsageError(
        f"unknown {what}: {value!r} (expected {', '.join(names)})",
        hint=f"{did_you_mean(map(repr, close))}{hint}",
    )


def did_you_mean(close: Iterable[str]) -> str:
    """The start of a hint if names are close; empty without any.

    >>> did_you_mean(["T4", "L4"])
    'did you mean T4 or L4? '
    """
    names = " or ".join(close)
    return f"did you mean {names}? " if names else ""


class CheckpointError(PrecheckError):
    """A checkpoint that cannot be scanned."""


class CheckpointAccessError(CheckpointError):
    """A checkpoint that does not exist, or that the Hub refuses to serve."""


class CheckpointCorruptError(CheckpointError):
    """A checkpoint whose files contradict themselves or end early."""


class UnsupportedModelError(CheckpointError):
    """A format or an architecture that precheck does not scan, or code it may not run."""


class UnsupportedConfigurationError(PrecheckError):
    """A dtype or attention implementation that this model cannot run with."""


class MemoryExhaustedError(PrecheckError):
    """The device or the host has too little memory for the scan."""


class LibraryVersionError(PrecheckError):
    """torch, transformers or another library is missing, or too old or too new."""


class WorkerLostError(PrecheckError):
    """One of several processes ended before the scan did."""


class WeightsElsewhereError(PrecheckError):
    """A model's code uses weights outside the module that owns them: they must stay in memory."""


class UntraceableError(PrecheckError):
    """A model whose forward depends on values and so cannot be traced without weights."""


class ServerError(PrecheckError):
    """A server that gives no answer, or not the one its API promises.

    Args:
        message: what failed.
        hint: the next thing to type or change.
        status: HTTP status that it answered with; None where it did not answer.
    """

    def __init__(self, message: str, *, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class ReportError(PrecheckError):
    """A report that cannot be read, or is of another major schema."""


class BaselineError(PrecheckError):
    """A baseline that cannot be read, or that names an unknown code."""


class ScanInterrupted(KeyboardInterrupt):
    """Ctrl-C during a scan; ``partial`` holds what was measured or judged so far."""

    def __init__(self, partial: object) -> None:
        super().__init__("interrupted")
        self.partial = partial


class WrittenInterrupted(KeyboardInterrupt):
    """Ctrl-C after the output folder was complete and in place."""

    def __init__(self, folder: object) -> None:
        super().__init__("interrupted")
        self.folder = folder


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
