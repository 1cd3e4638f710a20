"""Surroundings that are not as they should be: a matrix of faults, each in a process of its own.

What is wrong with a checkpoint, an output or memory stands in ``tests/test_bad_input.py``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from precheck.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SCAN = ("scan", "demo:llama-product", "--quick")
VERDICT = "✗ float16 + sdpa: overflows in layer 4"


def started(
    *arguments: str, folder: Path, environment: Mapping[str, str | None] | None = None
) -> subprocess.Popen[str]:
    merged: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-m", "precheck", *arguments],
        cwd=folder,
        env={name: value for name, value in merged.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    )


SURROUNDINGS: dict[str, dict[str, str | None]] = {
    "no home, no cache, no folder for temporary files": {
        "HOME": "/nonexistent",
        "XDG_CACHE_HOME": "/proc/1/nowhere",
        "TMPDIR": "/nonexistent",
    },
    "a home that is a file, a locale without UTF-8, a terminal of 20 columns": {
        "HOME": "/dev/null",
        "LANG": "C",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "ascii",
        "COLUMNS": "20",
    },
    "no environment": {
        name: None for name in os.environ if name not in {"PATH", "LD_LIBRARY_PATH"}
    },
}


@pytest.mark.parametrize("name", list(SURROUNDINGS))
def test_the_verdict_does_not_depend_on_the_surroundings(name: str, tmp_path: Path) -> None:
    process = started(*SCAN, "-o", "report.json", folder=tmp_path, environment=SURROUNDINGS[name])
    out, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.GATE_FAILS, err
    assert "Traceback" not in err
    assert "llama-product" in out.replace("\n", "")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["complete"]
    assert [run["verdict"] for run in report["runs"]].count("overflow") == 2
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_two_scans_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Also where both have to build the built-in model first."""
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "cache").mkdir()
    both = [started(*SCAN, folder=tmp_path, environment=environment) for _ in range(2)]
    outputs = [each.communicate(timeout=300)[0] for each in both]
    assert [each.returncode for each in both] == [ExitCode.GATE_FAILS] * 2
    assert outputs[0] == outputs[1]
    assert VERDICT in outputs[0]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_measured(sent: signal.Signals, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    # every length is a batch of its own, so the signal comes long before the end
    prompts.write_text("\n".join("word " * length for length in range(1, 60)), encoding="utf-8")
    process = started(
        *("scan", "demo:llama-product", "--prompts", "prompts.txt", "-o", "report.json"),
        folder=tmp_path,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("weights read"):
            break
    time.sleep(1)
    for _ in range(10):  # by the terminal, and by launchers that hand it on
        process.send_signal(sent)
        time.sleep(0.05)
    _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.INTERRUPTED, err
    assert "partial results written to report.json" in err
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert not report["complete"]
    assert report["incomplete_reason"] == "interrupted"


def test_a_scan_gives_the_same_report_again(tmp_path: Path) -> None:
    """To the letter, in another process, with what is stored of probes, seed and weights."""
    for name in ("first.json", "second.json"):
        process = started(*SCAN, "--generate", "3", "-o", name, folder=tmp_path)
        process.communicate(timeout=300)
    first, second = ((tmp_path / name).read_bytes() for name in ("first.json", "second.json"))
    assert first == second
    assert json.loads(first)["seed"] == 0
