from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from precheck.checkpoint import safetensors_shard as module
from precheck.checkpoint.weights import Weights
from precheck.errors import CheckpointCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "both": torch.zeros(1)}, first)
    save_file({"b": torch.ones(4, dtype=torch.bfloat16), "both": torch.ones(1)}, second)
    return [first, second]


def test_is_a_mapping_over_all_shards(shards: list[Path]) -> None:
    with Weights(shards) as weights:
        assert sorted(weights) == ["a", "b", "both"]
        assert len(weights) == 3
        assert "a" in weights
        assert "c" not in weights
        assert torch.equal(weights["a"], torch.arange(6.0).reshape(2, 3))
        assert weights["b"].dtype == torch.bfloat16
        assert weights["b"].device.type == "cpu"
        with pytest.raises(KeyError):
            weights["c"]


def test_the_later_shard_counts_for_a_name_that_two_hold(shards: list[Path]) -> None:
    with Weights(shards) as weights:
        assert weights["both"].item() == 1.0


def test_headers_alone_give_shapes_dtypes_and_sizes(
    shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_self: object, name: str) -> torch.Tensor:
        pytest.fail(f"read {name}")

    monkeypatch.setattr(module.SafetensorsShard, "tensor", read)
    with Weights(shards) as weights:
        assert weights.shape("a") == (2, 3)
        assert weights.dtype("a") == "float32"
        assert weights.dtype("b") == "bfloat16"
        assert weights.num_elements == 11
        assert weights.size_bytes == sum(file.stat().st_size for file in shards)
        assert "a" in weights


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
     torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8,
     torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64],
    ids=str,
)  # fmt: skip
def test_dtypes_have_torch_names(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.zeros(2, dtype=dtype)}, tmp_path / "1.safetensors")
    with Weights([tmp_path / "1.safetensors"]) as weights:
        assert f"torch.{weights.dtype('a')}" == str(weights["a"].dtype) == str(dtype)


def test_opens_each_shard_once(shards: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    original = safe_open

    def counted(file: Path, **arguments: str) -> object:
        opened.append(file)
        return original(file, **arguments)

    monkeypatch.setattr(module, "safe_open", counted)
    with Weights(shards) as weights:
        for _ in range(2):
            assert len(list(weights.items())) == 3
    assert opened == shards


def test_tensors_outlive_the_mapping(shards: list[Path]) -> None:
    with Weights(shards) as weights:
        tensor = weights["a"]
    assert tensor.sum().item() == 15.0
    assert len(weights) == 0


def test_changing_a_tensor_does_not_change_the_file(shards: list[Path]) -> None:
    before = shards[0].read_bytes()
    with Weights(shards) as weights:
        weights["a"].zero_()
    assert shards[0].read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"PK\x03\x04 not a zip"])
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_corrupt_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    file = tmp_path / f"bad.{suffix}"
    file.write_bytes(content)
    with pytest.raises((CheckpointCorruptError, UnsupportedModelError), match=file.name) as caught:
        Weights([file], allow_pickle=True)
    assert caught.value.hint


def test_a_cut_off_pickle_is_named(tmp_path: Path) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointCorruptError, match=r"pytorch_model\.bin"):
        Weights([file], allow_pickle=True)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_git_lfs_pointer_is_told_apart(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"pointer.{suffix}"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    with pytest.raises(CheckpointCorruptError, match="Git LFS pointer") as caught:
        Weights([file], allow_pickle=True)
    assert "lfs pull" in str(caught.value.hint)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickles_read_the_same(tmp_path: Path, *, is_zip: bool) -> None:
    file = tmp_path / "pytorch_model.bin"
    content = {"a": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.ones(4, dtype=torch.bfloat16)}
    torch.save(content, file, _use_new_zipfile_serialization=is_zip)
    with Weights([file], allow_pickle=True) as weights:
        assert weights.dtype("b") == "bfloat16"
        assert weights.shape("a") == (2, 3)
        assert weights.num_elements == 10
        assert torch.equal(weights["a"], torch.ones(2, 3))
        assert not weights["a"].requires_grad


class Surprise:
    """What a pickle may hold besides tensors."""


@pytest.mark.parametrize(
    "content",
    [
        {"a": Surprise()},
        {"model": {"a": torch.ones(1)}},
        [torch.ones(1)],
        {3: torch.ones(1)},
    ],
)
def test_a_pickle_of_more_than_tensors_is_refused(tmp_path: Path, content: object) -> None:
    file = tmp_path / "pytorch_model.bin"
    torch.save(content, file)
    with pytest.raises(UnsupportedModelError, match="plain dictionary of tensors") as caught:
        Weights([file], allow_pickle=True)
    assert "save_pretrained" in str(caught.value.hint)
