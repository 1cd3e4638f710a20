"""The one entry to this room: a checkpoint or a live module in, measurements out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UnsupportedModelError, WeightsElsewhereError
from precheck.measure.machine.memory import is_out_of_memory, memory_error
from precheck.measure.machine.torch_settings import exact_float32
from precheck.measure.scan import scan
from precheck.measure.static.describe import describe
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import Subject
    from precheck.records.report import Measurements


def measure(subject: Subject, request: Request, *, observe: Observer) -> Measurements:
    """Everything a scan measures, or what is known without running anything.

    A live module is left as it was: hooks and modes go onto copies. A checkpoint whose code uses
    weights outside the modules that own them is scanned again with all of them in memory.

    Raises:
        PrecheckError: the scan cannot start, or cannot go on.
        ScanInterrupted: Ctrl-C; ``partial`` is what was measured so far.
    """
    if request.is_static:
        return describe(subject, is_full=request.is_full, options=request.options, observe=observe)
    try:
        with exact_float32(), quiet_transformers():
            try:
                return scan(subject, request, observe=observe)
            except WeightsElsewhereError as error:
                _check_downloaded(subject, error)
                observe(Announcement(text=f"{error.message}; keeping all weights in memory"))
                return scan(subject, replace(request, is_resident=True), observe=observe)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise memory_error(error, doing="during the scan") from error
        raise
    finally:
        _tell_traffic(subject, observe=observe)


def _check_downloaded(subject: Subject, error: WeightsElsewhereError) -> None:
    """Raises where weights that would have to stay in memory are on the Hub."""
    if subject.checkpoint is not None and subject.checkpoint.remote is not None:
        raise UnsupportedModelError(
            f"{subject.name!r} cannot be streamed: {error.message}",
            hint="omit --stream: its files are downloaded then",
        ) from error


def _tell_traffic(subject: Subject, *, observe: Observer) -> None:
    """Says what was read on the Hub."""
    remote = None if subject.checkpoint is None else subject.checkpoint.remote
    if remote is not None:
        share = remote.num_bytes / max(1, subject.stored_bytes)
        observe(
            Announcement(
                text=f"read {num_bytes(remote.num_bytes)} on the Hub in "
                f"{counted(remote.num_requests, 'request')}: {share:.3f} of what the weights take"
            )
        )
