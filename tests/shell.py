"""The real command line, run in this process on a real checkpoint.

What holds for every call is checked here: no traceback, no control characters, one line for an
error and one for its hint, and no file that was not asked for.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import transformers
from safetensors.torch import load_file, save_file

from precheck import cli
from precheck.records.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from precheck.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One run of the command line."""

    code: int
    out: str
    err: str
    left: tuple[str, ...]
    """Files in the working folder that were not there before, or were something else."""

    @property
    def error(self) -> str:
        """The message, on the last line or the one before the hint."""
        (message,) = re.findall(r"^error: (.*)$", self.err, flags=re.MULTILINE)
        return str(message)

    @property
    def hint(self) -> str:
        """The next thing to type."""
        (hint,) = re.findall(r"^hint: (.*)$", self.err, flags=re.MULTILINE)
        return str(hint)

    @property
    def report(self) -> Report:
        """The report on stdout; needs ``--format json``."""
        return Report.from_dict(json.loads(self.out))


class Shell:
    """Runs the command line in this process, in a folder of its own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capfd = capfd

    def __call__(self, *arguments: str | Path, command: str = "scan") -> Ended:
        before = files_in(self.folder)
        self.monkeypatch.setattr(sys, "argv", ["precheck", command, *map(str, arguments)])
        self.capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = self.capfd.readouterr()
        assert "Traceback" not in out + err
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", out + err)
        return Ended(
            code=int(end.value.code or 0),
            out=out,
            err=err,
            left=tuple(sorted(name for name, _ in files_in(self.folder) - before)),
        )

    def refuses(
        self,
        *arguments: str | Path,
        code: ExitCode,
        says: str,
        hint: str,
        command: str = "scan",
    ) -> Ended:
        """Runs what must end with this message, before anything was written or printed."""
        ended = self(*arguments, command=command)
        assert (ended.code, ended.out, ended.left) == (code, "", ()), ended.err
        assert says in ended.error
        assert hint in ended.hint
        assert ended.err.endswith(f"error: {ended.error}\nhint: {ended.hint}\n")
        assert not ended.error.endswith(".")
        first = ended.error.split()[0]
        assert first == first.lower() or not first.isalpha() or hasattr(transformers, first)
        return ended

    def scans(self, *arguments: str | Path, code: ExitCode) -> Report:
        """Runs one quick scan that must come to an end, and gives its report."""
        ended = self(*arguments, "--quick", "--format", "json")
        assert (ended.code, ended.left) == (code, ()), ended.err
        assert ended.report.complete
        return ended.report


def files_in(folder: Path) -> set[tuple[str, int]]:
    """Every file, with when it was last written."""
    return {
        (each.relative_to(folder).as_posix(), each.lstat().st_mtime_ns)
        for each in folder.rglob("*")
        if not each.is_dir() or each.is_symlink()
    }


def change_config(folder: Path, **changes: Any) -> None:
    """Writes other values into a checkpoint's config."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Lets ``change`` write into a checkpoint's tensors."""
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
