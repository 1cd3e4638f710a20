"""Several processes share a scan; the report is that of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from precheck.errors import ExitCode
from precheck.measure.processes import ProcessGroup, SingleProcess
from precheck.records.report import Report

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT = 300

LOSES_ONE = """
import contextlib, os, signal
from precheck import cli
from precheck.commands import terminal
from precheck.records.progress import Step

def die(event):
    if isinstance(event, Step) and event.unit == "model.layers.2" and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

terminal.progress = lambda *, quiet: contextlib.nullcontext(die)
cli.main()
"""


def launched(
    *arguments: str | Path, cache: Path, processes: int = 2
) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` of two processes on the CPU, a thread each.

    Its ``--cpu`` starts one process, whatever the number; ``--multi_gpu`` needs no GPU.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = ["--num_processes", str(processes), "--mixed_precision", "no"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(  # noqa: S603  our own program
        [*command, *options, "--num_machines", "1", "--dynamo_backend", "no", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        timeout=TIMEOUT,
        env=environment,
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of one process."""
    folder = tmp_path_factory.mktemp("alone")
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-m", "precheck", "scan", "demo:qwen2-eager", "-o", folder / "one.json"],
        capture_output=True,
        check=False,
        timeout=TIMEOUT,
        env=os.environ | {"XDG_CACHE_HOME": str(folder), "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == ExitCode.GATE_HOLDS, ran.stderr
    report: dict[str, Any] = json.loads((folder / "one.json").read_text())
    return report


def test_two_processes_make_the_report_of_one(alone: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "two.json"
    ran = launched("-m", "precheck", "scan", "demo:qwen2-eager", "-o", file, cache=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(file.read_text()) == alone
    assert ran.stdout.count("  where  ") == 1
    assert ran.stderr.count("PASS: ") == 1
    assert ran.stderr.count("scanning demo:qwen2-eager") == 1


def test_a_process_that_dies_makes_the_scan_incomplete(tmp_path: Path) -> None:
    script, file = tmp_path / "script.py", tmp_path / "report.json"
    script.write_text(LOSES_ONE)
    ran = launched(script, "scan", "demo:qwen2-eager", "-o", file, cache=tmp_path)
    assert ran.returncode == 1  # the launcher's own, whatever a process ended with
    assert "exitcode  : -9" in ran.stderr or "SIGKILL" in ran.stderr or "-9" in ran.stderr
    report = Report.from_dict(json.loads(file.read_text()))
    assert not report.complete
    assert report.incomplete_reason is not None
    assert "one of 2 processes was lost" in report.incomplete_reason
    assert any(run.layers for run in report.runs)  # what was measured is kept
    assert any("not finished" in each for each in report.coverage.probes_not_run)


def test_one_process_does_everything_and_imports_nothing_for_it() -> None:
    process = SingleProcess()
    assert process.share([5, 3, 9]) == [0, 1, 2]
    assert process.exchange("found") == ["found"]


class State:
    def __init__(self, count: int, index: int) -> None:
        self.num_processes, self.process_index = count, index


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[], [5], [384, 384, 84, 172], [1, 2, 3, 4, 5, 6], [7] * 9])
def test_shares_cover_every_batch_once_and_are_even(count: int, sizes: list[int]) -> None:
    shares = []
    for index in range(count):
        process = ProcessGroup.__new__(ProcessGroup)
        process._state = State(count, index)  # noqa: SLF001
        shares.append(process.share(sizes))
    assert sorted(batch for share in shares for batch in share) == list(range(len(sizes)))
    loads = [sum(sizes[batch] for batch in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
