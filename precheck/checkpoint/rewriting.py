"""Writes a checkpoint again with some tensors multiplied by powers of two, tensor by tensor.

Files of safetensors are written by hand, because the library writes a whole shard from memory.

**Source**: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint.config import CONFIG, read_config
from precheck.checkpoint.formats import SAFETENSORS
from precheck.checkpoint.output.carried import copy_carried, find_carried
from precheck.checkpoint.safetensors_shard import SAFETENSORS_DTYPES
from precheck.checkpoint.shards import tensor_bytes
from precheck.checkpoint.tensor_audit import audit_tensor
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import UsageError
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO

    from torch import Tensor

    from precheck.checkpoint.output.carried import Carried
    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.records.outcomes.fix import Extent, TensorChange

SHARD_BYTES = 5_000_000_000
"""The largest size of a file, as with ``save_pretrained``; one tensor may be larger."""

_CODES = {name: code for code, name in SAFETENSORS_DTYPES.items()}
_READ_FROM_ELSEWHERE = ("transformers_weights", "configuration_files")
"""Keys of a config that make transformers read other weights, or another config."""


@dataclass(slots=True)
class Rounded:
    """How many values of the changed tensors became too small for float16."""

    num_elements: int = 0
    num_zero: int = 0
    """Became zero in float16."""
    num_subnormal: int = 0
    """Became subnormal in float16, with fewer digits."""


def check_room(target: Path, checkpoint: Checkpoint, carried: Carried) -> None:
    """Checks that the disk has room for the checkpoint and what goes with it.

    Raises:
        UsageError: it has not; says how much is free.
    """
    parent = target.resolve().parent
    needed = carried.size_bytes + sum(file.stat().st_size for file in checkpoint.weight_files)
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise UsageError(
            f"not enough disk space in {str(parent)!r}: {num_bytes(free)} free "
            f"(expected {num_bytes(needed)}{_mostly(carried, needed)})",
            hint="free some space, or choose another disk",
        )


def _mostly(carried: Carried, needed: int) -> str:
    """Names the file that takes more than half, if it is none of the weights."""
    return next(
        (
            f", most of it for {each.name!r}"
            for each in carried.files
            if each.size_bytes > needed / 2
        ),
        "",
    )


def check_apart(target: Path, checkpoint: Checkpoint) -> None:
    """Checks that the original is not what would be replaced.

    Raises:
        UsageError: it lies in the folder that is to be written.
    """
    if checkpoint.folder.resolve().is_relative_to(target.resolve()):
        raise UsageError(
            f"the original is inside the output folder: {str(target)!r} (it is never replaced)",
            hint="choose another folder, and delete the original when you no longer need it",
        )


def write_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    stored: Weights,
    *,
    changes: Mapping[str, Sequence[TensorChange]],
    settings: Mapping[tuple[str, ...], float],
    dtype: str,
) -> Rounded:
    """Writes weights, config and every other file of the checkpoint.

    Tensors keep name and dtype; those that are shifted are stored in float32, because ``1 + w``
    near zero has no digits left in 16 bits.

    Args:
        folder: empty.
        checkpoint: where everything else comes from.
        stored: its tensors.
        changes: what happens to which tensor.
        settings: numbers of the config and what they become, by their path.
        dtype: what the config declares from now on.

    Raises:
        OSError: a file cannot be written; ``unfinished`` turns it into a ``UsageError``.
        CheckpointError: a stored tensor cannot be read, or was changed meanwhile.
    """
    rounded = _write_weights(folder, stored, changes)
    stored.check_unchanged()
    _write_config(folder, checkpoint, settings, dtype)
    copy_carried(find_carried(checkpoint.folder).files, folder)
    return rounded


def _write_weights(
    folder: Path, stored: Weights, changes: Mapping[str, Sequence[TensorChange]]
) -> Rounded:
    rounded = Rounded()
    shards = _shards(stored, changes)
    for name, tensors in shards.items():
        with (folder / name).open("xb") as file:
            _write_shard(file, tensors, stored, changes, rounded)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(map(stored.nbytes, stored))},
            "weight_map": {name: file for file, names in shards.items() for name in names},
        }
        write_json(folder / SAFETENSORS[1], index)
    return rounded


def multiplied(tensor: Tensor, changes: Sequence[TensorChange]) -> Tensor:
    """A tensor with its parts multiplied by powers of two; exact unless values get too small.

    Args:
        tensor: any shape and floating-point dtype; it is not changed.
        changes: of parts that do not overlap.

    Example:
        ``multiplied(weight, [TensorChange(power=-2)])`` is ``weight / 4``
    """
    if any(change.shift is not None for change in changes):
        tensor = tensor.float()
    product = tensor.clone()
    for change in changes:
        part = block_of(product, change.block)
        if change.shift is None:
            part.mul_(2.0**change.power)
        else:
            exact = (part.double() + change.shift) * 2.0**change.power - change.shift
            part.copy_(exact)
    return product


def block_of(tensor: Tensor, block: Sequence[Extent]) -> Tensor:
    """A view of the elements within every extent."""
    for extent in block:
        tensor = tensor.narrow(extent.dim, extent.start, extent.stop - extent.start)
    return tensor


def _shards(stored: Weights, changes: Mapping[str, Sequence[TensorChange]]) -> dict[str, list[str]]:
    """Names of tensors by file, in the order they are stored in."""
    groups: list[list[str]] = [[]]
    size = 0
    for name in stored:
        tensor_size = _size(name, stored, changes)
        if groups[-1] and size + tensor_size > SHARD_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += tensor_size
    if len(groups) == 1:
        return {SAFETENSORS[0]: groups[0]}
    total = len(groups)
    return {
        f"model-{number:05d}-of-{total:05d}.safetensors": names
        for number, names in enumerate(groups, start=1)
    }


def _dtype(name: str, stored: Weights, changes: Mapping[str, Sequence[TensorChange]]) -> str:
    is_shifted = any(change.shift is not None for change in changes.get(name, ()))
    return "float32" if is_shifted else stored.dtype(name)


def _size(name: str, stored: Weights, changes: Mapping[str, Sequence[TensorChange]]) -> int:
    return math.prod(stored.shape(name)) * torch_dtype(_dtype(name, stored, changes)).itemsize


def _write_shard(
    file: BinaryIO,
    names: Sequence[str],
    stored: Weights,
    changes: Mapping[str, Sequence[TensorChange]],
    rounded: Rounded,
) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        end = position + _size(name, stored, changes)
        header[name] = {
            "dtype": _CODES[_dtype(name, stored, changes)],
            "shape": list(stored.shape(name)),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    buffer = torch.empty(max(map(stored.nbytes, names), default=0), dtype=torch.uint8)
    for name in names:
        tensor = stored.read_into(name, buffer)
        if name in changes:
            changed = multiplied(tensor, changes[name])
            _count(rounded, tensor, changed)
            tensor = changed
        file.write(tensor_bytes(tensor))
    file.flush()
    os.fsync(file.fileno())


def _count(rounded: Rounded, before: Tensor, after: Tensor) -> None:
    old, new = audit_tensor(before), audit_tensor(after)
    rounded.num_elements += before.numel()
    rounded.num_zero += max(0, new.num_float16_zero - old.num_float16_zero)
    rounded.num_subnormal += max(0, new.num_float16_subnormal - old.num_float16_subnormal)


def _write_config(
    folder: Path, checkpoint: Checkpoint, settings: Mapping[tuple[str, ...], float], dtype: str
) -> None:
    content = read_config(checkpoint.folder, where=checkpoint.id)
    for elsewhere in _READ_FROM_ELSEWHERE:
        content.pop(elsewhere, None)
    for path, value in settings.items():
        holder = content
        for part in path[:-1]:
            holder = holder.setdefault(part, {})
        holder[path[-1]] = value
    for holder in (content, *(value for value in content.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if isinstance(holder.get(key), str):
                holder[key] = dtype
    if not {"dtype", "torch_dtype"} & set(content):
        content["dtype"] = dtype
    write_json(folder / CONFIG, content)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Writes an object, indented for people to read."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    file.write_text(f"{text}\n", encoding="utf-8")
