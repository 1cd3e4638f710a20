"""Runs one layer of a model twice, in float32 and in fewer bits, and names the first overflow.

Everything it needs is in this folder: the config, the layer's weights up to the operation in
question and the hidden states that entered it. It only imports torch, transformers and safetensors.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

FOLDER = Path(__file__).resolve().parent


class Ended(Exception):
    """The next operation needs weights that were left out: the one in question ran before it."""


class Watch(TorchDispatchMode):
    """Compares every operation with the same one of the reference, and keeps the first that breaks.

    A value below half the smallest number of the narrow dtype is a mask, and may become -inf.
    """

    def __init__(self, dtype: torch.dtype, reference: Watch | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mask = torch.finfo(dtype).min / 2
        self.reference = reference
        self.outputs: dict[tuple[str, int], tuple[torch.Tensor, float]] = {}
        self.calls: Counter[str] = Counter()
        self.first: tuple[str, str, int, float] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(tensor.is_meta for tensor in tensors([args, kwargs or {}])):
            raise Ended
        output = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1].split(".")[0]
        for tensor in tensors(output):
            if tensor.is_floating_point() and name != "_to_copy":
                self.compare(name, tensor)
        return output

    def compare(self, name: str, output: torch.Tensor) -> None:
        """Counts ordinary numbers that are no longer finite, and masks that became NaN."""
        key = (name, self.calls[name])
        self.calls[name] += 1
        ordinary = output.isfinite() & (output > self.mask)
        abs_max = output.masked_fill(~ordinary, 0).abs().max().item() if output.numel() else 0.0
        self.outputs[key] = (ordinary, abs_max)
        match = None if self.reference is None else self.reference.outputs.get(key)
        if self.first or match is None or match[0].shape != output.shape:
            return
        expected, reference_abs_max = match
        broken = int((expected & ~output.isfinite() | ~expected & output.isnan()).sum())
        if broken:
            self.first = (name, source(), broken, reference_abs_max)


def source() -> str:
    """The line of modeling code that is running."""
    frame: Any = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.name.startswith("modeling_"):
            return f"{path.name}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"


def tensors(tree: Any) -> Any:
    """Every tensor in nested lists, tuples and dicts."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        yield from tensors(list(tree.values()))
    elif isinstance(tree, (list, tuple)):
        for member in tree:
            yield from tensors(member)


def rebuilt(tree: Any, stored: dict[str, torch.Tensor], widen: bool) -> Any:
    """Arguments as they were: JSON holds their structure, safetensors their numbers."""
    if isinstance(tree, dict) and "tensor" in tree:
        return in_dtype(stored[tree["tensor"]], widen)
    if isinstance(tree, dict) and "tuple" in tree:
        return tuple(rebuilt(member, stored, widen) for member in tree["tuple"])
    if isinstance(tree, dict):
        return {key: rebuilt(member, stored, widen) for key, member in tree["dict"].items()}
    if isinstance(tree, list):
        return [rebuilt(member, stored, widen) for member in tree]
    return tree


def in_dtype(tensor: torch.Tensor, widen: bool) -> torch.Tensor:
    """A copy, in float32 to ``widen``."""
    return tensor.float() if widen and tensor.is_floating_point() else tensor.clone()


def run(capsule: dict[str, Any], *, widen: bool, reference: Watch | None = None) -> Watch:
    """The layer's own forward, watched."""
    layer = load_layer(capsule, widen)
    stored = load_file(FOLDER / "inputs.safetensors")
    args = rebuilt(capsule["args"], stored, widen)
    kwargs = {name: rebuilt(value, stored, widen) for name, value in capsule["kwargs"].items()}
    watch = Watch(getattr(torch, capsule["dtype"]), reference)
    with torch.no_grad(), watch:
        try:
            layer(*args, **kwargs)
        except Ended:
            pass
    return watch


def load_layer(capsule: dict[str, Any], widen: bool) -> torch.nn.Module:
    """The layer with its weights; those that were left out stay on meta."""
    config = transformers.AutoConfig.from_pretrained(FOLDER)
    with torch.device("meta"):
        model = getattr(transformers, capsule["architecture"])._from_config(
            config, attn_implementation=capsule["attn_implementation"]
        )
    model.eval()
    if capsule["experts_implementation"]:
        model.set_experts_implementation(capsule["experts_implementation"])
    layer: torch.nn.Module = model.get_submodule(capsule["layer"])
    for name, tensor in load_file(FOLDER / "weights.safetensors").items():
        owner, _, key = name.rpartition(".")
        module = layer.get_submodule(owner)
        values = in_dtype(tensor, widen)
        if key in module._parameters:
            module._parameters[key] = torch.nn.Parameter(values, requires_grad=False)
        else:
            module._buffers[key] = values
    return layer


def main() -> int:
    """Exit code 0: the overflow is there, 1: it is not."""
    capsule = json.loads((FOLDER / "capsule.json").read_text(encoding="utf-8"))
    reference = run(capsule, widen=True)
    first = run(capsule, widen=False, reference=reference).first
    architecture, attention = capsule["architecture"], capsule["attn_implementation"]
    print(f"{capsule['layer']} of {architecture}, {attention} attention")
    if first is None:
        print(
            f"{capsule['dtype']}: no overflow with torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )
        return 1
    op, line, num_elements, abs_max = first
    limit = torch.finfo(getattr(torch, capsule["dtype"])).max
    print(f"float32: aten.{op} at {line} reaches {abs_max:,.0f}, and everything is finite")
    print(
        f"{capsule['dtype']}: the same gives {num_elements:,} elements that are not finite; "
        f"it ends at {limit:,.0f}"
    )
    print(f"    {capsule['code']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
