"""Checkpoints that are broken at random: an error with a reason, or a report; nothing else.

``make fuzz`` runs many more examples than ``make test`` does.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import precheck
from precheck.errors import PrecheckError
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable

EXAMPLES = int(os.environ.get("PRECHECK_FUZZ_EXAMPLES", "4"))
MOST_MEMORY = 2 << 30
"""Bytes that a broken checkpoint of a few hundred kilobytes may make the process grow by."""

FUZZED = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny("qwen2").save_pretrained(folder, max_shard_size="60KB")
    save_checkpoint(tiny("qwen2"), folder / "single", tokenizer=True)
    for file in (folder / "single").iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            shutil.copy(file, folder / file.name)
    shutil.rmtree(folder / "single")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def scanned(sound: Path, breaking: Callable[[Path], None]) -> None:
    """Scans a broken copy: whatever comes is a report or an error of ours."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "broken"
        shutil.copytree(sound, folder)
        breaking(folder)
        before = {path: path.stat().st_mtime_ns for path in Path(parent).rglob("*")}
        memory = psutil.Process().memory_info().rss
        for is_static in (True, False):
            with contextlib.suppress(PrecheckError):
                precheck.scan(folder, static=is_static, quick=not is_static, device="cpu")
        assert psutil.Process().memory_info().rss - memory < MOST_MEMORY
        after = {path: path.stat().st_mtime_ns for path in Path(parent).rglob("*")}
        assert before == after, "nothing is written beside a checkpoint"


@FUZZED
@given(seed=SEEDS)
def test_bytes_that_were_changed(sound: Path, seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311  hypothesis draws the seed

    def breaking(folder: Path) -> None:
        file = chosen.choice(sorted(folder.iterdir()))
        content = bytearray(file.read_bytes())
        for _ in range(chosen.randint(1, 8)):
            content[chosen.randrange(min(len(content), 4096))] = chosen.randrange(256)
        file.write_bytes(content)

    scanned(sound, breaking)


@FUZZED
@given(seed=SEEDS)
def test_files_that_end_early_or_go_on(sound: Path, seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311

    def breaking(folder: Path) -> None:
        file = chosen.choice(sorted(folder.iterdir()))
        content = file.read_bytes()
        cut = content[: chosen.randrange(len(content))]
        file.write_bytes(chosen.choice((cut, content + cut, b"")))

    scanned(sound, breaking)


LIES: tuple[Any, ...] = (
    None, -1, 0, 1, 2**31, 2**63, 2**70, 1e308, "", "x", "../../../etc/passwd", [], [[]], {},
    {"a": {}}, True, [2**40, 2**40], "BF16", "F32", "Q9", "\udc80",
)  # fmt: skip


@FUZZED
@given(seed=SEEDS)
def test_headers_that_lie(sound: Path, seed: int) -> None:
    """Offsets, shapes, dtypes and names of safetensors headers."""
    chosen = random.Random(seed)  # noqa: S311

    def breaking(folder: Path) -> None:
        file = chosen.choice(sorted(folder.glob("*.safetensors")))
        content = file.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + length])
        name = chosen.choice([each for each in header if each != "__metadata__"])
        match chosen.randrange(5):
            case 0:
                header[name][chosen.choice(("dtype", "shape", "data_offsets"))] = chosen.choice(
                    LIES
                )
            case 1:
                header[chosen.choice(("", "../x", "a" * 10_000))] = header.pop(name)
            case 2:
                header[name]["data_offsets"] = [chosen.randrange(2**40), chosen.randrange(2**40)]
            case 3:
                header["__metadata__"] = chosen.choice(LIES)
            case _:
                length = chosen.choice((0, 2**62, length - 1, length + 1))
        text = json.dumps(header).encode()
        size = len(text) if chosen.random() < 0.8 else length
        file.write_bytes(struct.pack("<Q", size) + text + content[8 + length % 2**20 :])

    scanned(sound, breaking)


@FUZZED
@given(seed=SEEDS)
def test_configs_and_indices_that_lie(sound: Path, seed: int) -> None:
    chosen = random.Random(seed)  # noqa: S311

    def breaking(folder: Path) -> None:
        file = folder / chosen.choice(("config.json", "model.safetensors.index.json"))
        plain = json.loads(file.read_text(encoding="utf-8"))
        inner = plain.get("weight_map", plain)
        for _ in range(chosen.randint(1, 3)):
            inner[chosen.choice(sorted(inner))] = chosen.choice(LIES)
        if chosen.random() < 0.1:
            plain = chosen.choice(LIES)
        file.write_text(json.dumps(plain), encoding="utf-8")

    scanned(sound, breaking)
