"""The probe room's one entry: a checkpoint or a live module in, measurements out."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import WeightsElsewhereError
from precheck.measure.machine.devices import resolve_device
from precheck.measure.machine.memory import is_out_of_memory, memory_error
from precheck.measure.machine.torch_settings import exact_float32
from precheck.measure.models.configurations import check_attention_name
from precheck.measure.scan import Scan
from precheck.records.progress import Announcement, Observer

if TYPE_CHECKING:
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import Subject
    from precheck.records.report import Measurements


def measure(subject: Subject, request: Request, *, observe: Observer) -> Measurements:
    """Everything a scan measures.

    A live module is left as it was: hooks and modes go onto copies. A checkpoint whose code uses
    weights outside the modules that own them is scanned again with all of them in memory.

    Raises:
        PrecheckError: the scan cannot start, or cannot go on.
        ScanInterrupted: Ctrl-C; ``partial`` is what was measured until then.
    """
    try:
        with exact_float32(), quiet_transformers():
            try:
                return _scanned(subject, request, observe=observe)
            except WeightsElsewhereError as error:
                observe(Announcement(text=f"{error.message}; keeping all weights in memory"))
                return _scanned(subject, replace(request, is_resident=True), observe=observe)
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise memory_error(error, doing="during the scan") from error
        raise


def _scanned(subject: Subject, request: Request, *, observe: Observer) -> Measurements:
    with closing(Scan(subject, request, observe=observe)) as scan:
        scan.prepare()
        scan.plan()
        scan.plan_memory()
        scan.run()
        return scan.measurements()


def check_request(request: Request, *, trust_remote_code: bool) -> None:
    """Refuses what no checkpoint could run with, before one is fetched.

    Raises:
        UsageError: an unknown attention implementation, or a device that is not here.
    """
    required = (each.attn_implementation for each in request.required)
    for name in (*(request.attn_implementations or ()), *required):
        check_attention_name(name, trust_remote_code=trust_remote_code)
    resolve_device(request.device)
