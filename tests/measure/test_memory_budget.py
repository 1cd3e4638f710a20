"""What is free, what is taken, and what a scan needs beside weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from torch import nn

from precheck.measure.machine import memory
from precheck.measure.machine.memory import free_bytes, used_bytes
from precheck.measure.memory_budget import activation_bytes
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.probes.batch import Batch
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.precision import Arithmetic, Dtype
from precheck.records.traces import Probe
from tests.tiny_models import tiny

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file system of control groups, and this process in one of them."""
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "fs")
    return tmp_path


def group(root: Path, path: str, *, limit: str, anonymous: int, version: int) -> None:
    names = {1: ("memory.limit_in_bytes", "rss"), 2: ("memory.max", "anon")}[version]
    folder = root / "fs" / ("memory" if version == 1 else "") / path
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"cache 999\n{names[1]} {anonymous}\nmapped_file 5\n")


def test_a_container_has_what_its_limit_leaves(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/box/inner\n")
    group(groups, "box", limit="1000000", anonymous=300_000, version=2)
    group(groups, "box/inner", limit="max", anonymous=200_000, version=2)
    assert free_bytes("cpu") == 700_000


def test_groups_of_the_first_version(groups: Path) -> None:
    (groups / "cgroup").write_text("5:cpu:/elsewhere\n4:memory:/box\n0::/\n")
    group(groups, "box", limit="500000", anonymous=100_000, version=1)
    assert free_bytes("cpu") == 400_000


def test_a_container_that_took_more_than_it_may_has_nothing(groups: Path) -> None:
    (groups / "cgroup").write_text("0::/box\n")
    group(groups, "box", limit="1000", anonymous=2000, version=2)
    assert free_bytes("cpu") == 0


@pytest.mark.parametrize("membership", ["", "0::/gone\n", "4:memory:/gone\n"])
def test_without_a_limit_it_is_what_the_machine_has(groups: Path, membership: str) -> None:
    (groups / "cgroup").write_text(membership)
    available = psutil.virtual_memory().available
    assert free_bytes("cpu") == pytest.approx(available, rel=0.2)


def test_memory_of_files_is_not_taken() -> None:
    before = used_bytes("cpu")
    kept = torch.ones(1 << 26)  # 256 MiB
    assert used_bytes("cpu") - before > 200 << 20
    del kept


def test_activations_grow_with_tokens_and_runs() -> None:
    model = tiny("qwen2")
    skeleton = Skeleton(
        configuration=Configuration(dtype=Dtype.FLOAT32, attn_implementation="sdpa"),
        model=model,
        requested_attn_implementation="sdpa",
        parameters=Parameters.of(model),
    )

    def batch(tokens: int) -> Batch:
        probe = Probe(name="x", kind="token_ids", num_tokens=tokens)
        return Batch(probes=(probe,), input_ids=torch.zeros(1, tokens, dtype=torch.long))

    def beyond_what_is_fixed(batches: list[Batch], skeletons: list[Skeleton]) -> int:
        return activation_bytes(batches, skeletons) - activation_bytes([batch(0)], skeletons)

    one = beyond_what_is_fixed([batch(16)], [skeleton])
    assert one > 0
    assert beyond_what_is_fixed([batch(32)], [skeleton]) == 2 * one
    assert one < beyond_what_is_fixed([batch(16)], [skeleton] * 2) < 2 * one
    assert one < beyond_what_is_fixed([batch(16)] * 2, [skeleton]) < 2 * one


def test_products_in_float32_take_a_copy_of_their_weights() -> None:
    model = tiny("qwen2")
    skeleton = Skeleton(
        configuration=Configuration(dtype=Dtype.FLOAT16, attn_implementation="sdpa"),
        model=model,
        requested_attn_implementation="sdpa",
        parameters=Parameters.of(model),
    )
    rounded = replace(skeleton, arithmetic=Arithmetic.FLOAT32_ROUNDED)
    probe = Probe(name="x", kind="token_ids", num_tokens=4)
    batch = Batch(probes=(probe,), input_ids=torch.zeros(1, 4, dtype=torch.long))
    widest = max(
        module.weight.numel()
        for module in skeleton.model.model.modules()
        if type(module) is nn.Linear
    )
    more = activation_bytes([batch], [rounded]) - activation_bytes([batch], [skeleton])
    assert more == 4 * widest
