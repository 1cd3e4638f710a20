"""SmolLM2's GGUF file with its matrices stored in another type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from benchmarks.engines.gguf_files import BLOCK, q4_k

if TYPE_CHECKING:
    from pathlib import Path


SOURCE = "SmolLM2-135M*.gguf"
"""What the checkpoint was decoded from, so that F32 has the same weights."""


def gguf_of(models: Path, kind: str) -> Path:
    """The file with matrices of a type, made once, in a folder of real models."""
    file = models / "gguf" / f"{kind}.gguf"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        part = file.with_suffix(".part")
        _store(next(models.rglob(SOURCE)), part, kind)
        part.rename(file)
    return file


def _store(source: Path, target: Path, kind: str) -> None:
    """Writes ``source`` with its matrices as ``F32``, ``F16``, ``BF16``, ``Q8_0`` or ``Q4_K``.

    Vectors stay in float32, as llama.cpp needs them. In Q4_K, rows that are no whole blocks are
    stored in Q5_0 instead, as llama.cpp's own quantisation does.
    """
    reader = gguf.GGUFReader(source)
    field = reader.get_field("general.architecture")
    writer = gguf.GGUFWriter(target, field.contents())
    for name, each in reader.fields.items():
        if name.startswith("GGUF.") or name in {"general.architecture", "general.file_type"}:
            continue
        inner = each.types[-1] if each.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, each.contents(), each.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        wanted = gguf.GGMLQuantizationType[_kind(kind, values)]
        is_k = wanted == gguf.GGMLQuantizationType.Q4_K
        data = q4_k(values) if is_k else gguf.quants.quantize(values, wanted)
        writer.add_tensor(tensor.name, data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _kind(kind: str, values: np.ndarray[Any, np.dtype[np.float32]]) -> str:
    """The type of one tensor."""
    if values.ndim == 1:
        return "F32"
    return "Q5_0" if kind == "Q4_K" and values.shape[-1] % BLOCK else kind
