"""A checkpoint that was scanned, and what the scan saved for servers."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from precheck import cli
from precheck.errors import ExitCode
from precheck.served.runs.file import SavedLogits, read_logits
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

QUICK = ("--quick", "--dtype", "float32,bfloat16", "--attn", "sdpa", "--device", "cpu", "--quiet")
NUM_GENERATED = 8
"""So often the same token is no text."""


@dataclass
class Scanned:
    """A checkpoint, what a scan of it saved, and the same folder without its weights."""

    folder: Path
    file: Path
    report: Path
    described: Path

    @property
    def saved(self) -> SavedLogits:
        return read_logits(self.file)


@pytest.fixture(scope="session")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    parent = tmp_path_factory.mktemp("saved")
    folder, described = parent / "checkpoint", parent / "described"
    save_checkpoint(tiny("qwen2", num_layers=2), folder, tokenizer=True)
    file, report = parent / "saved.logits", parent / "report.json"
    flags = (*QUICK, "--generate", NUM_GENERATED, "--save-logits", file, "-o", report)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["precheck", "scan", str(folder), *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code == ExitCode.GATE_HOLDS
    shutil.copytree(folder, described, ignore=shutil.ignore_patterns("*.safetensors"))
    return Scanned(folder, file, report, described)
