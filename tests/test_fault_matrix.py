"""Each stage of a scan x each fault: the exit code, what is kept, and that nothing is left.

Faults in the surroundings stand in ``tests/test_faults.py``, faults of a checkpoint in
``tests/test_bad_input.py``, a lost process in ``tests/test_processes.py``.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.models.qwen2 import modeling_qwen2

from precheck import pipeline
from precheck.checkpoint import checkpoint_audit, safetensors_shard
from precheck.errors import ExitCode
from precheck.measure import memory_budget
from precheck.measure.lockstep.figures.logits import LogitsTotals
from precheck.measure.lockstep.turns import Worker
from precheck.records.finding import Verdict
from precheck.records.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.shell import Shell

pytestmark = pytest.mark.usefixtures("ctrl_c")

LAYER: Any = modeling_qwen2.Qwen2DecoderLayer


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def sent(number: signal.Signals) -> Callable[[], None]:
    def send() -> None:
        signal.raise_signal(number)
        time.sleep(0.005)  # it is heard before the next is sent

    return send


MEMORY, DEVICE_MEMORY, GONE, STALE, FULL, SIGINT, SIGTERM, SIGHUP = (
    "out of memory",
    "out of memory on the device",
    "file system gone",
    "stale file handle",
    "disk full",
    "SIGINT",
    "SIGTERM",
    "SIGHUP",
)
FAULTS: dict[str, Callable[[], None]] = {
    MEMORY: raising(MemoryError()),
    DEVICE_MEMORY: raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    GONE: raising(OSError(errno.EIO, "Input/output error")),
    STALE: raising(OSError(errno.ESTALE, "Stale file handle")),
    FULL: raising(OSError(errno.ENOSPC, "No space left on device")),
    SIGINT: sent(signal.SIGINT),
    SIGTERM: sent(signal.SIGTERM),
    SIGHUP: sent(signal.SIGHUP),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where a fault happens: a function that fails, once it is called as ``counts`` says."""

    owner: object
    name: str
    faults: tuple[str, ...]
    """Those that can happen there."""
    layers: int | None = None
    """Decoder layers that the report keeps of each run; None: there is no report yet."""
    counts: Callable[..., bool] = lambda *_: True


def is_layer(index: int) -> Callable[..., bool]:
    """Of a real forward: planning runs one without values."""
    return lambda layer, hidden, *_: layer.self_attn.layer_idx == index and not hidden.is_meta


SECOND_LAYER = 290_000
"""Where its weights begin in the file, about; those of the first end before."""
SIGNALS = (SIGINT, SIGTERM, SIGHUP)
RUNNING = (MEMORY, DEVICE_MEMORY, SIGINT, SIGTERM)
FILES = (MEMORY, GONE, STALE, SIGINT, SIGTERM)
STAGES: dict[str, Stage] = {
    "config": Stage(
        owner=Path,
        name="read_bytes",
        faults=FILES,
        counts=lambda path: path.name == "config.json",
    ),
    "opening": Stage(owner=safetensors_shard, name="safe_open", faults=FILES),
    "building": Stage(owner=transformers.Qwen2ForCausalLM, name="from_pretrained", faults=RUNNING),
    "planning": Stage(owner=memory_budget, name="activation_bytes", faults=RUNNING),
    "reading": Stage(owner=os, name="preadv", faults=FILES, layers=0),
    "auditing": Stage(
        owner=checkpoint_audit, name="audit_chunk", faults=(MEMORY, SIGINT, SIGTERM), layers=0
    ),
    "first layer": Stage(owner=LAYER, name="forward", faults=RUNNING, layers=0, counts=is_layer(0)),
    "second layer": Stage(
        owner=LAYER, name="forward", faults=RUNNING, layers=1, counts=is_layer(1)
    ),
    "reading later": Stage(
        owner=os, name="preadv", faults=FILES, layers=1, counts=lambda _, __, at: at > SECOND_LAYER
    ),
    "scores": Stage(owner=LogitsTotals, name="add", faults=RUNNING, layers=2),
    "judging": Stage(owner=pipeline, name="judge", faults=(MEMORY, SIGINT, SIGTERM)),
    "writing": Stage(owner=Path, name="replace", faults=(MEMORY, GONE, STALE, FULL, *SIGNALS)),
}


def plant(shell: Shell, stage: Stage, fault: str) -> None:
    called: Any = getattr(stage.owner, stage.name)

    def fail(*arguments: Any, **options: Any) -> Any:
        if stage.counts(*arguments):
            FAULTS[fault]()
        return called(*arguments, **options)

    shell.monkeypatch.setattr(stage.owner, stage.name, fail)


def expected_code(stage: str, fault: str) -> ExitCode:
    if fault in SIGNALS:
        return ExitCode.INTERRUPTED
    is_output = stage == "writing" and fault != MEMORY
    return ExitCode.USAGE if is_output else ExitCode.INCOMPLETE


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, each in STAGES.items() for fault in each.faults]
)
def test_a_fault_ends_the_scan_as_it_should(shell: Shell, name: str, fault: str) -> None:
    """A fault stays one: what fails does so at each call, and a signal is sent at each."""
    stage = STAGES[name]
    plant(shell, stage, fault)
    ended = shell("model", "--quick", "-o", "report.json")
    assert ended.code == expected_code(name, fault), ended.err
    is_signal = fault in SIGNALS
    is_measured = name in {"judging", "writing"}
    keeps = bool(ended.left)
    if stage.layers != 0 or not is_signal:  # a signal may come just before the first forward
        is_kept = stage.layers or (is_signal and is_measured)
        assert ended.left == (("report.json",) if is_kept else ())
    if is_signal:
        assert "interrupted\n" in ended.err
    elif not keeps:
        assert SAYS[fault] in ended.error
        assert ended.hint
    if keeps:
        report = Report.from_dict(json.loads((shell.folder / "report.json").read_text()))
        assert report.complete == is_measured
    if keeps and not is_measured:
        assert ("interrupted" if is_signal else SAYS[fault]) in str(report.incomplete_reason)
        # a signal is heard between two turns
        kept = stage.layers or 0
        around = {kept - 1, kept, kept + 1} if is_signal else {kept}
        assert {len(run.layers) for run in report.runs} <= around
        assert {run.verdict for run in report.runs} == {Verdict.INCOMPLETE}


SAYS = {
    MEMORY: "out of memory",
    DEVICE_MEMORY: "out of memory",
    GONE: "Input/output error",
    STALE: "Stale file handle",
    FULL: "No space left on device",
}


def test_a_signal_before_a_thread_is_started_is_no_bug() -> None:
    unused: Any = None
    worker = Worker(
        name="run", model=torch.nn.Linear(1, 1), units=(), presence=unused, workload=unused
    )
    worker._thread = threading.Thread(target=print)  # noqa: SLF001  as start() leaves it
    worker.stop()
