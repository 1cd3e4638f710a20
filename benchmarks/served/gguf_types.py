"""A GGUF file with its matrices stored in another type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gguf
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path


def stored_as(source: Path, target: Path, kind: str) -> None:
    """Writes ``source`` with its matrices as ``kind`` (``F32``, ``F16``, ``BF16``, ``Q8_0``).

    Vectors stay in float32, as llama.cpp needs them.
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
        wanted = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
        data = gguf.quants.quantize(values, wanted)
        writer.add_tensor(tensor.name, data, raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
