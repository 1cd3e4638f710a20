"""``kill -9`` at any moment of a fix: the folder that was there stays whole, or the new one is.

Every operation on the files is tried without a model in ``tests/checkpoint/test_output.py``.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

from precheck.checkpoint.output.workspace import NEW, OLD, PREFIX, find_leftovers, remove_leftover
from precheck.errors import ExitCode
from tests.cure.survey import planted

if TYPE_CHECKING:
    from collections.abc import Callable

WRITING, TAKEN_PLACE = "open", "shutil.rmtree"
"""Kinds of operations on the output; the last removes what was in its place."""
NUM_OPERATIONS = 60
"""Fewer than there are."""
LONGEST_SECONDS = 10.0
"""What a fix takes, about."""
SECONDS = 120
"""After these it hangs."""
ROOT = Path(__file__).parents[2]
NUM_KILLS = int(os.environ.get("PRECHECK_KILLS", "10"))
"""``make killed`` asks for a hundred."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a folder in it."""
    folder = planted("Llama", "product", tmp_path_factory.mktemp("killed") / "model")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    return folder


def kill_at(number: int, kind: str = "") -> None:
    """Let this process kill itself at one of its operations on the output, or of those of a kind.

    They are counted from zero.
    """
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        names = (str(each) for each in arguments if isinstance(each, str | bytes | Path))
        if kind in {"", event} and event != "import" and any(PREFIX in name for name in names):
            seen += 1
            if seen > number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def kill_after(seconds: float) -> None:
    """Let this process kill itself after a while."""

    def end() -> None:
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()


def fix(model: Path, here: Path, kill: Callable[..., None], *arguments: object) -> int:
    """Fix the model in a process that kills itself so; its exit code.

    Not in a fork of this one: OpenMP's threads would not come along.
    """
    code = (
        f"from precheck import cli; from {__name__} import {kill.__name__}; "
        f"{kill.__name__}(*{arguments!r}); cli.main()"
    )
    options = ["fix", str(model), "-o", "fixed", "--overwrite", "--quiet"]
    return subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", code, *options],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        timeout=SECONDS,
    ).returncode


def survives(model: Path, here: Path, kill: Callable[..., None], *arguments: object) -> bool:
    """Whether the new folder stands; if not the old one does, and nothing else is left."""
    fixed = here / "fixed"
    shutil.rmtree(fixed, ignore_errors=True)
    fixed.mkdir()
    (fixed / "mine.txt").write_text("mine")
    code = fix(model, here, kill, *arguments)
    assert code in {ExitCode.GATE_HOLDS, -signal.SIGKILL}
    names = {path.name for path in fixed.iterdir()}
    if "mine.txt" in names:
        assert names == {"mine.txt"}
    else:
        assert names == {path.name for path in model.iterdir()} | {"README.md", "precheck-fix.json"}
        assert load_file(fixed / "model.safetensors").keys() == (
            load_file(model / "model.safetensors").keys()
        )
    for leftover in find_leftovers(here):
        remove_leftover(leftover)
    # killed before it was locked, or when all else was removed, it leaves a folder without content
    assert not [*here.glob(f"{PREFIX}*/{NEW}"), *here.glob(f"{PREFIX}*/{OLD}")]
    return "mine.txt" not in names


@pytest.mark.parametrize(("kind", "is_new"), [(WRITING, False), (TAKEN_PLACE, True)])
def test_killed_while_it_writes_and_when_it_has_taken_its_place(
    model: Path, tmp_path: Path, kind: str, is_new: bool
) -> None:
    assert survives(model, tmp_path, kill_at, 2 if kind == WRITING else 0, kind) == is_new


@pytest.mark.timeout(3600)
def test_killed_again_and_again(model: Path, tmp_path: Path) -> None:
    """At its operations one after the other, when it has taken its place, and at random times."""
    times = random.Random(0)  # noqa: S311  no secret
    outcomes = [survives(model, tmp_path, kill_at, number, TAKEN_PLACE) for number in range(3)]
    assert all(outcomes)
    half = NUM_KILLS // 2
    outcomes += [
        survives(model, tmp_path, kill_at, NUM_OPERATIONS * number // half)
        for number in range(half)
    ]
    outcomes += [
        survives(model, tmp_path, kill_after, times.uniform(0, LONGEST_SECONDS))
        for _ in range(half, NUM_KILLS - 3)
    ]
    assert not all(outcomes)
