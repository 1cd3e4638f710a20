"""Runs one layer of a model twice, in float32 and in fewer bits, and names the first overflow.

Everything it needs is in the same folder: the config, the layer's weights up to the operation in
question and the hidden states that entered it. It imports only torch, transformers and safetensors.
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
    """The next operation needs weights that were left out: the one in question came before."""


class Watch(TorchDispatchMode):
    """Compares every operation with the same one of the reference, and keeps the first that breaks.

    What is below half the smallest number of the narrow dtype is a mask, and may become -inf.
    """

    def __init__(self, dtype: torch.dtype, reference: Watch | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mask = torch.finfo(dtype).min / 2
        self.reference = reference
        self.seen: dict[tuple[str, int], tuple[torch.Tensor, float]] = {}
        self.calls: Counter[str] = Counter()
        self.first: tuple[str, str, int, float] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(each.is_meta for each in tensors([args, kwargs or {}])):
            raise Ended
        output = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1].split(".")[0]
        for each in tensors(output):
            if each.is_floating_point() and name != "_to_copy":
                self.look(name, each)
        return output

    def look(self, name: str, output: torch.Tensor) -> None:
        """Ordinary numbers that are no longer finite, and masks that became NaN."""
        key = (name, self.calls[name])
        self.calls[name] += 1
        ordinary = output.isfinite() & (output > self.mask)
        largest = output.masked_fill(~ordinary, 0).abs().max().item() if output.numel() else 0.0
        self.seen[key] = (ordinary, largest)
        known = None if self.reference is None else self.reference.seen.get(key)
        if self.first or known is None or known[0].shape != output.shape:
            return
        broken = int((known[0] & ~output.isfinite() | ~known[0] & output.isnan()).sum())
        if broken:
            self.first = (name, source(), broken, known[1])


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
        for each in tree:
            yield from tensors(each)


def rebuilt(tree: Any, stored: dict[str, torch.Tensor], widen: bool) -> Any:
    """Arguments as they were: JSON holds their shape, safetensors their numbers."""
    if isinstance(tree, dict) and "tensor" in tree:
        return wide(stored[tree["tensor"]], widen)
    if isinstance(tree, dict) and "tuple" in tree:
        return tuple(rebuilt(each, stored, widen) for each in tree["tuple"])
    if isinstance(tree, dict):
        return {key: rebuilt(each, stored, widen) for key, each in tree["dict"].items()}
    if isinstance(tree, list):
        return [rebuilt(each, stored, widen) for each in tree]
    return tree


def wide(tensor: torch.Tensor, widen: bool) -> torch.Tensor:
    """In float32 if asked; a copy in any case."""
    return tensor.float() if widen and tensor.is_floating_point() else tensor.clone()


def run(recorded: dict[str, Any], *, widen: bool, reference: Watch | None = None) -> Watch:
    """The layer's own forward, watched."""
    config = transformers.AutoConfig.from_pretrained(FOLDER)
    with torch.device("meta"):
        model = getattr(transformers, recorded["architecture"])._from_config(
            config, attn_implementation=recorded["attn_implementation"]
        )
    model.eval()
    if recorded["experts_implementation"]:
        model.set_experts_implementation(recorded["experts_implementation"])
    layer = model.get_submodule(recorded["layer"])
    for name, tensor in load_file(FOLDER / "weights.safetensors").items():
        holder, _, key = name.rpartition(".")
        module = layer.get_submodule(holder)
        if key in module._parameters:
            module._parameters[key] = torch.nn.Parameter(wide(tensor, widen), requires_grad=False)
        else:
            module._buffers[key] = wide(tensor, widen)
    stored = load_file(FOLDER / "inputs.safetensors")
    arguments = rebuilt(recorded["args"], stored, widen)
    named = {name: rebuilt(each, stored, widen) for name, each in recorded["kwargs"].items()}
    watch = Watch(getattr(torch, recorded["dtype"]), reference)
    with torch.no_grad(), watch:
        try:
            layer(*arguments, **named)
        except Ended:
            pass
    return watch


def main() -> int:
    """Exit code 0: the overflow is there, 1: it is not."""
    recorded = json.loads((FOLDER / "capsule.json").read_text(encoding="utf-8"))
    exact = run(recorded, widen=True)
    found = run(recorded, widen=False, reference=exact).first
    print(
        f"{recorded['layer']} of {recorded['architecture']}, "
        f"{recorded['attn_implementation']} attention"
    )
    if found is None:
        print(
            f"{recorded['dtype']}: no overflow with torch {torch.__version__}, "
            f"transformers {transformers.__version__}"
        )
        return 1
    op, line, number, needed = found
    limit = torch.finfo(getattr(torch, recorded["dtype"])).max
    print(f"float32: aten.{op} at {line} reaches {needed:,.0f}, all elements finite")
    print(
        f"{recorded['dtype']}: the same operation gives {number:,} non-finite elements; "
        f"the maximum is {limit:,.0f}"
    )
    print(f"    {recorded['code']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
