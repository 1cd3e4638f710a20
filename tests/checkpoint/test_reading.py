"""Reading tensors into memory of the caller's: whole, by rows, from files that change."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from precheck.checkpoint.weights import Weights
from precheck.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    torch.float8_e8m0fnu,
)


def tensors() -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {
        str(dtype): (torch.arange(84).reshape(7, 3, 4) % 5).to(dtype) for dtype in DTYPES
    }
    found["scalar"] = torch.tensor(3.5)
    found["empty"] = torch.empty(0, 4)
    found["odd_size"] = torch.arange(3, dtype=torch.int8)  # what comes after it is not aligned
    found["after"] = torch.arange(6, dtype=torch.float64)
    return found


@pytest.fixture(scope="module", params=["safetensors", "bin"])
def weights(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Weights]:
    folder = tmp_path_factory.mktemp("weights")
    names = sorted(tensors())
    files = []
    for number, part in enumerate((names[:7], names[7:])):
        file = folder / f"part-{number}.{request.param}"
        content = {name: tensors()[name] for name in part}
        if request.param == "bin":
            torch.save(content, file)
        else:
            save_file(content, file)
        files.append(file)
    with Weights(files, allow_pickle=True) as opened:
        yield opened


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return (
        ours.dtype is theirs.dtype
        and ours.shape == theirs.shape
        and torch.equal(
            ours.contiguous().reshape(-1).view(torch.uint8),
            theirs.contiguous().reshape(-1).view(torch.uint8),
        )
    )


def buffer(size: int) -> torch.Tensor:
    return torch.full((size + 16,), 255, dtype=torch.uint8)


@pytest.mark.parametrize("name", sorted(tensors()))
def test_a_tensor_is_read_as_it_is_stored(name: str, weights: Weights) -> None:
    expected = tensors()[name]
    before = weights.bytes_read
    memory = buffer(weights.nbytes(name))
    assert weights.nbytes(name) == expected.nbytes
    read = weights.read_into(name, memory)
    assert same(read, expected)
    assert same(weights[name], expected)
    assert weights.bytes_read - before == expected.nbytes
    if expected.nbytes:
        assert read.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    assert bool((memory[expected.nbytes :] == 255).all())


@pytest.mark.pinned("older torch does not index 8-bit floats")
@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.integers(0, 6), max_size=12), name=st.sampled_from(list(map(str, DTYPES))))
def test_rows_come_in_the_order_asked_for(rows: list[int], name: str, weights: Weights) -> None:
    read = weights.read_rows_into(name, rows, buffer(12 * 12 * 8))
    assert same(read, tensors()[name][rows])


@settings(max_examples=60, deadline=None)
@given(start=st.integers(0, 8), stop=st.integers(0, 9))
def test_a_slice_of_rows_is_one_read(start: int, stop: int, weights: Weights) -> None:
    name = "torch.bfloat16"
    before = weights.bytes_read
    read = weights.read_rows_into(name, slice(start, stop), buffer(7 * 12 * 2))
    expected = tensors()[name][start:stop]
    assert same(read, expected)
    assert weights.bytes_read - before == expected.nbytes


def test_of_one_name_in_two_files_the_later_counts(tmp_path: Path) -> None:
    for number in range(2):
        save_file({"a": torch.full((4,), float(number))}, tmp_path / f"{number}.safetensors")
    with Weights([tmp_path / "0.safetensors", tmp_path / "1.safetensors"]) as weights:
        assert weights.read_into("a", buffer(16)).tolist() == [1.0] * 4


def test_reading_ahead_asks_and_does_not_wait(weights: Weights) -> None:
    before = weights.bytes_read
    weights.read_ahead(list(weights), limit=1 << 20)
    assert weights.bytes_read == before


@pytest.fixture
def one(tmp_path: Path) -> Iterator[tuple[Path, Weights]]:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4096.0)}, file)
    with Weights([file]) as weights:
        yield file, weights


def test_an_unchanged_file_passes(one: tuple[Path, Weights]) -> None:
    file, weights = one
    weights.check_unchanged()
    os.utime(file, ns=(0, file.stat().st_mtime_ns))  # read by somebody else
    weights.check_unchanged()


def test_a_file_that_was_cut_off(one: tuple[Path, Weights]) -> None:
    file, weights = one
    os.truncate(file, 600)
    with pytest.raises(CheckpointCorruptError, match="written to while it was read") as caught:
        weights.check_unchanged()
    assert str(file) in str(caught.value)
    with pytest.raises(CheckpointCorruptError, match="truncated while it was read"):
        weights.read_into("a", buffer(4096 * 4))


def test_a_file_that_another_one_replaced(one: tuple[Path, Weights]) -> None:
    file, weights = one
    other = file.with_name("other")
    save_file({"a": torch.arange(4096.0)}, other)
    other.replace(file)
    with pytest.raises(CheckpointCorruptError, match="it was replaced"):
        weights.check_unchanged()


def test_a_deleted_file_is_all_there(one: tuple[Path, Weights]) -> None:
    file, weights = one
    file.unlink()
    weights.check_unchanged()
    assert same(weights.read_into("a", buffer(4096 * 4)), torch.arange(4096.0))


def test_closing_closes_every_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(4.0)}, file)
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()  # noqa: PTH112, PTH208
    weights = Weights([file])
    weights.close()
    after = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set()  # noqa: PTH112, PTH208
    assert len(after) <= len(before)
