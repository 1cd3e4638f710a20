"""Checkpoints of real shapes with random weights, written without ever building the model.

Weights are slices of one block of normal numbers, so that 15 GB are written at the speed of the
disk. With ``sparse=True`` the matrices are holes in the file: zeros that take no space.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers
from safetensors.torch import save_file

from precheck.checkpoint.gallery import saved

if TYPE_CHECKING:
    import argparse

SHARD_BYTES = 2 << 30
STD = 0.02
_BLOCK_ELEMENTS = 1 << 26


def add_options(parser: argparse.ArgumentParser, *, size: str) -> None:
    """Which checkpoint to use, and where it is kept."""
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--size", default=size, help="1.5b or 7b")
    parser.add_argument("--layers", type=int)


def qwen2_config(size: str, *, num_layers: int | None = None) -> transformers.Qwen2Config:
    """The shape of Qwen2-1.5B (``1.5b``) or Qwen2-7B (``7b``)."""
    shapes = {
        "1.5b": {
            "vocab_size": 151_936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "tie_word_embeddings": True,
        },
        "7b": {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
        },
    }
    return transformers.Qwen2Config(
        num_hidden_layers=num_layers or 28,
        max_position_embeddings=32_768,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        dtype="bfloat16",
        architectures=["Qwen2ForCausalLM"],
        **shapes[size],
    )


def checkpoint(
    folder: Path, size: str, *, num_layers: int | None = None, sparse: bool = False
) -> Path:
    """The folder of such a checkpoint, written unless it is there."""
    name = f"qwen2-{size}-{num_layers or 28}{'-sparse' if sparse else ''}"
    place = folder / name
    if (place / "config.json").exists():
        return place
    place.mkdir(parents=True, exist_ok=True)
    config = qwen2_config(size, num_layers=num_layers)
    with torch.device("meta"):
        model = transformers.Qwen2ForCausalLM(config)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters()}
    for file in saved("qwen2-eager").glob("*token*.json"):
        shutil.copy(file, place)
    template = saved("qwen2-eager") / "chat_template.jinja"
    if template.exists():
        shutil.copy(template, place)
    index: dict[str, str] = {}
    shards = _shards(shapes)
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        part = {name: shapes[name] for name in names}
        if sparse:
            _write_sparse(place / file, part)
        else:
            save_file({name: _weight(name, shape) for name, shape in part.items()}, place / file)
        index |= dict.fromkeys(names, file)
    total = 2 * sum(math.prod(shape) for shape in shapes.values())
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (place / "model.safetensors.index.json").write_text(json.dumps(content))
    config.save_pretrained(place)
    return place


def size_bytes(place: Path) -> int:
    """Bytes of the weight files."""
    return sum(file.stat().st_size for file in place.glob("*.safetensors"))


def _shards(shapes: dict[str, tuple[int, ...]]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


_block: list[torch.Tensor] = []


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Norms are one, biases zero, matrices normal."""
    if len(shape) == 1:
        return torch.full(shape, 0.0 if name.endswith("bias") else 1.0, dtype=torch.bfloat16)
    if not _block:
        generator = torch.Generator().manual_seed(0)
        block = torch.empty(_BLOCK_ELEMENTS, dtype=torch.bfloat16)
        for part in block.split(1 << 22):
            part.copy_(torch.randn(part.numel(), generator=generator) * STD)
        _block.append(block)
    count = math.prod(shape)
    start = sum(map(ord, name)) * 7919 % _BLOCK_ELEMENTS
    parts = []
    while count:
        part = _block[0][start : start + count]
        parts.append(part)
        count, start = count - part.numel(), 0
    return torch.cat(parts).view(shape)


def _write_sparse(file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Norms are written; matrices are holes."""
    header: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        data = stream.tell()
        stream.truncate(data + end)
        for name, shape in shapes.items():
            if len(shape) == 1 and not name.endswith("bias"):
                entry = header[name]
                assert isinstance(entry, dict)  # noqa: S101  just made
                stream.seek(data + entry["data_offsets"][0])
                stream.write(_weight(name, shape).view(torch.uint8).numpy().tobytes())
