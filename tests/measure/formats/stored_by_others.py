"""Writes ``data/stored_by_others.safetensors``: a tensor stored and read back by other libraries.

For an environment of its own: ``pip install torch precheck-llm compressed-tensors==0.20.1
gguf==0.19.0 bitsandbytes==0.50.2 torchao==0.18.0 optimum-quanto==0.2.7 pywhispercpp==1.5.1``, then
``python tests/measure/formats/stored_by_others.py``. The tests that read the file need none of
these, and must not: precheck says what is missing where compressed-tensors or bitsandbytes is.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

FILE = Path(__file__).parent / "data" / "stored_by_others.safetensors"
NUM_ROWS, NUM_COLUMNS = 16, 256
SCHEMES = {
    "FP8_DYNAMIC": "fp8",
    "FP8_BLOCK": "fp8_block",
    "MXFP8": "mxfp8",
    "W8A8": "int8",
    "W4A16": "int4",
    "MXFP4": "mxfp4_w4a4",
    "NVFP4": "nvfp4",
}
"""Of compressed-tensors, and what precheck calls them."""
BY_GGML = ("q8_0", "q5_0", "q4_0", "q6_K", "q4_K")


def drawn() -> Tensor:
    """Weights with an outlier channel, an empty row and an empty group, and halves of integers."""
    generator = torch.Generator().manual_seed(22)
    tensor = torch.randn(NUM_ROWS, NUM_COLUMNS, generator=generator)
    tensor[:, 77] *= 40
    tensor[3] = 0.0
    tensor[4, :64] = 0.0
    tensor[5] *= 1e-3
    tensor[6] *= torch.logspace(-3, 3, NUM_COLUMNS)
    tensor[7] = torch.arange(NUM_COLUMNS) / 2 - 64
    tensor[8] = tensor[8].bfloat16().float()
    return tensor


def by_compressed_tensors(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Weights of every scheme, and activations where the engines compute them alike."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES  # noqa: PLC0415

    for scheme, name in SCHEMES.items():
        found: dict[str, Any] = PRESET_SCHEMES[scheme]
        weights = found["weights"]
        if scheme == "W4A16":  # a checkpoint's scales are in its dtype
            weights = weights.model_copy(update={"scale_dtype": torch.bfloat16})
        yield f"{name}.weights", _fake_quantized(tensor, weights)
        if "input_activations" in found and scheme != "W8A8":
            yield f"{name}.activations", _fake_quantized(tensor, found["input_activations"])


def _fake_quantized(tensor: Tensor, args: Any) -> Tensor:
    from compressed_tensors.quantization import fake_quantize  # noqa: PLC0415
    from compressed_tensors.quantization.utils import (  # noqa: PLC0415
        calculate_qparams,
        generate_gparam,
    )

    shared = None
    dims: tuple[int, ...] = (-1,)
    match args.strategy:
        case "group" | "tensor_group":
            groups = tensor.unflatten(-1, (-1, args.group_size))
        case "block":
            groups, dims = tensor.unflatten(-1, (-1, 128))[None], (1, 3)
        case _:
            groups = tensor
    if args.strategy == "tensor_group":
        shared = generate_gparam(tensor.amin(), tensor.amax())
    keepdim = args.strategy in {"channel", "token"}
    scale, zero_point = calculate_qparams(
        groups.amin(dims, keepdim=keepdim),
        groups.amax(dims, keepdim=keepdim),
        args,
        global_scale=shared,
    )
    stored: Tensor = fake_quantize(tensor, scale, zero_point, args, global_scale=shared)
    return stored


def by_ggml(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The C library itself, which whisper.cpp's wheel brings; decoded by gguf."""
    import gguf  # noqa: PLC0415
    import numpy as np  # noqa: PLC0415

    path = next(each for each in files("pywhispercpp") or () if each.name == "libggml-base.so")
    quantize = ctypes.CDLL(str(path.locate())).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    array = tensor.contiguous().numpy()
    for name in BY_GGML:
        kind = gguf.GGMLQuantizationType[name.upper()]
        packed = np.zeros(array.nbytes, dtype=np.uint8)
        size = quantize(
            ctypes.c_int(int(kind)),
            array.ctypes.data_as(ctypes.c_void_p),
            packed.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int64(0),
            ctypes.c_int64(NUM_ROWS),
            ctypes.c_int64(NUM_COLUMNS),
            None,
        )
        rows = packed[:size].reshape(NUM_ROWS, -1)
        yield f"{name.lower()}.weights", torch.from_numpy(gguf.dequantize(rows, kind))


def by_bitsandbytes(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Its CPU backend."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit  # noqa: PLC0415

    yield "nf4.weights", dequantize_4bit(*quantize_4bit(tensor, blocksize=64, quant_type="nf4"))


def by_torchao(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Weight-only int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_  # noqa: PLC0415

    linear = torch.nn.Linear(NUM_COLUMNS, NUM_ROWS, bias=False)
    linear.weight.data = tensor.clone()
    quantize_(linear, Int8WeightOnlyConfig())
    weight: Any = linear.weight
    yield "int8_weight.weights", weight.dequantize()


def by_quanto(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """As transformers' QuantizedCache calls it."""
    from optimum.quanto import MaxOptimizer, qint4, quantize_weight  # noqa: PLC0415

    cache = tensor.view(1, 2, NUM_ROWS // 2, NUM_COLUMNS)
    scale, shift = MaxOptimizer()(cache, qint4, 0, 64)
    stored = quantize_weight(cache, qint4, 0, scale, shift, 64)
    yield "int4.keys", stored.dequantize().view(NUM_ROWS, NUM_COLUMNS)


def main() -> None:
    """Writes the file."""
    tensor = drawn()
    found = {"drawn": tensor}
    for library in (by_compressed_tensors, by_ggml, by_bitsandbytes, by_torchao, by_quanto):
        for name, stored in library(tensor):
            found[name] = stored.contiguous()
    save_file(found, FILE)


if __name__ == "__main__":
    main()
