"""Writes ``data/float4_by_others.safetensors``: float4 linears packed and decoded by others.

For an environment of its own: ``pip install torch compressed-tensors`` (written with torch 2.13
and compressed-tensors 0.20.1), then ``python tests/checkpoint/float4_by_others.py``. The tests that
read the file need neither.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FILE = Path(__file__).parent / "data" / "float4_by_others.safetensors"
NUM_INPUTS, NUM_OUTPUTS = 64, 24


def drawn() -> torch.Tensor:
    """A weight ``(out, in)`` whose rows differ in size by powers of two."""
    generator = torch.Generator().manual_seed(4)
    sizes = 2.0 ** torch.randint(-9, 3, (NUM_OUTPUTS, 1), generator=generator)
    return torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=generator) * sizes


def by_compressed_tensors(compressor: Any, settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the library stores of a weight, and what it decodes that to, in float32."""
    helpers = import_module("compressed_tensors.quantization.utils.helpers")
    dequantize = import_module("compressed_tensors.quantization.lifecycle.forward").dequantize
    new_scheme = import_module("compressed_tensors.quantization").QuantizationScheme

    weight = drawn()
    scheme = new_scheme(targets=["Linear"], weights=settings["weights"])
    arguments = scheme.weights
    groups = weight.unflatten(1, (-1, arguments.group_size))
    state = {"weight": weight}
    if arguments.strategy == "tensor_group":
        state["weight_global_scale"] = helpers.generate_gparam(weight.min(), weight.max())
    of_all = state.get("weight_global_scale")
    scale, _ = helpers.calculate_qparams(groups.amin(2), groups.amax(2), arguments, of_all)
    stored = compressor.compress({**state, "weight_scale": scale}, scheme)
    numbers = compressor.decompress(
        {**stored, "weight_scale": torch.ones_like(scale), "weight_global_scale": None}
        if of_all is not None
        else {**stored, "weight_scale": torch.full_like(stored["weight_scale"], 127)},
        scheme,
    )["weight"]
    factors = compressor._decompress_scale(stored["weight_scale"], torch.float32)  # noqa: SLF001
    decoded = dequantize(
        numbers.float(), factors, args=arguments, dtype=torch.float32, global_scale=of_all
    )
    library = compressor.decompress(dict(stored), scheme)["weight"]
    if not torch.equal(decoded.to(library.dtype), library):
        raise AssertionError("the library decodes to other numbers")
    return {**stored, "decoded": decoded}


def main() -> None:
    """Writes the file."""
    schemes = import_module("compressed_tensors.quantization.quant_scheme")
    nvfp4 = import_module("compressed_tensors.compressors.nvfp4.base").NVFP4PackedCompressor
    mxfp4 = import_module("compressed_tensors.compressors.mxfp4.base").MXFP4PackedCompressor
    cases = {
        "nvfp4": by_compressed_tensors(nvfp4, schemes.NVFP4),
        "mxfp4": by_compressed_tensors(mxfp4, schemes.MXFP4),
    }
    save_file(
        {
            f"{case}.{name}": tensor.detach().contiguous()
            for case, tensors in cases.items()
            for name, tensor in tensors.items()
        },
        FILE,
    )
    sys.stdout.write(f"{len(cases)} cases in {FILE}\n")


if __name__ == "__main__":
    main()
