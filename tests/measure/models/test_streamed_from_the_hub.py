"""A scan whose weights stay on the Hub is the scan from disk."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
import torch

import precheck
from precheck.checkpoint.hub import fetch_description
from precheck.checkpoint.remote.opening import open_remote
from precheck.checkpoint.weights import Weights
from precheck.errors import CheckpointAccessError, UnsupportedModelError
from precheck.records.progress import Announcement, Step
from tests.hub_server import REPO, Virtual, endpoint, folder_files, served
from tests.shell import change_config
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("qwen2").bfloat16(), tmp_path / "qwen2", tokenizer=True)


def test_it_equals_the_scan_from_disk_and_reads_once(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precheck.checkpoint.remote.waiting._FIRST_WAIT_SECONDS", 0.001)
    said: list[str] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Announcement):
            said.append(event.text)

    local = precheck.scan(qwen2)
    with (
        served(folder_files(qwen2), cuts=10) as hub,
        endpoint(hub, tmp_path / "cache", monkeypatch),
    ):
        streamed = precheck.scan(REPO, stream=True, observe=observe)
    assert hub.cuts == 0
    for part in ("runs", "headroom", "checkpoint", "key_values", "probes", "coverage"):
        assert getattr(streamed, part) == getattr(local, part)
    assert [each.code for each in streamed.findings] == [each.code for each in local.findings]
    size = (qwen2 / "model.safetensors").stat().st_size
    assert 1.0 <= hub.bytes_sent["storage"] / size <= 1.02
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    share = re.search(r"(\d\.\d+) of what the weights take", said[-1])
    assert share is not None
    assert 1.0 <= float(share[1]) <= 1.02
    assert "--stream" in streamed.options


def test_a_folder_is_read_where_it_is(qwen2: Path) -> None:
    local = precheck.scan(qwen2, quick=True)
    assert precheck.scan(qwen2, quick=True, stream=True).runs == local.runs


def test_rows_take_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(range(0, 150_000, 30))
    table = Virtual({"model.embed_tokens.weight": ("BF16", (150_000, 1024))})
    with (
        served({"model.safetensors": table}) as hub,
        endpoint(hub, tmp_path / "cache", monkeypatch),
    ):
        snapshot = fetch_description(REPO, revision=None, with_code=False, check=lambda *_: None)
        remote = open_remote(snapshot, ["model.safetensors"], observe=lambda _: None)
        assert remote is not None
        files = [snapshot.folder / "model.safetensors"]
        with Weights(files, open_shard=remote.open_shard) as weights:
            before = len(hub.requests)
            buffer = torch.empty(2048 * len(rows), dtype=torch.uint8)
            found = weights.read_rows_into("model.embed_tokens.weight", rows, buffer)
            assert (found == 1).all()
            num_requests = len(hub.requests) - before
            assert num_requests <= 2000
            weights.read_rows_into("model.embed_tokens.weight", rows, buffer)
            assert len(hub.requests) - before == num_requests  # the other dtypes read them too


def test_it_is_refused_where_there_are_no_ranges(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(qwen2), ignores_ranges=True) as hub,
        endpoint(hub, tmp_path / "cache", monkeypatch),
        pytest.raises(CheckpointAccessError, match="was asked for, but"),
    ):
        precheck.scan(REPO, stream=True)


def test_it_is_refused_where_transformers_decodes_the_whole_model(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_config(qwen2, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with (
        served(folder_files(qwen2)) as hub,
        endpoint(hub, tmp_path / "cache", monkeypatch),
        pytest.raises(UnsupportedModelError, match="cannot be streamed"),
    ):
        precheck.scan(REPO, stream=True)
