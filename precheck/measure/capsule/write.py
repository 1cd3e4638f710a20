"""A capsule: the layer that overflows, its inputs and a script, for somebody without the model.

Idea. While a scan examines a unit that breaks, the arguments of one row of the batch are kept.
Afterwards the unit's weights are loaded once more, as the run used them, and written next to the
arguments: of the modules that had run when it broke, or of all if those are not enough. The
script in the capsule is run in a process of its own; if nothing breaks there, nothing is written.

What it cannot hold: embeddings and heads (no decoder layer), models whose code is not in
transformers, and sums that overflow inside a product, which only some kernels do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file
from transformers.cache_utils import Cache

from precheck.checkpoint.output.unfinished import unfinished
from precheck.measure.watch.trees import tensors_in
from precheck.records.quantities import magnitude, num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from torch import Tensor, nn

    from precheck.measure.blame.located_producer import Entry, LocatedProducer
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.watch.segment import OpNode


_SECONDS = 600
"""Time limit of the script, which runs one layer twice."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """An overflow of a run that was kept with its arguments."""

    skeleton: Skeleton
    located: LocatedProducer
    entry: Entry


def candidate(
    runs: Iterable[tuple[Skeleton, list[tuple[LocatedProducer, bool]]]],
) -> Candidate | None:
    """The overflow to save: the first of the first run that does not absorb it."""
    ranked = [
        (
            (is_absorbed, number, located.location.order, located.producer.node.index),
            Candidate(skeleton=skeleton, located=located, entry=located.entry),
        )
        for number, (skeleton, producers) in enumerate(runs)
        if not skeleton.dtype.is_reference and skeleton.configuration.is_plain
        for located, is_absorbed in producers
        if located.entry is not None
    ]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def write_capsule(folder: Path, overflow: Candidate, *, weights: SharedModels) -> str:
    """Writes the capsule and tries it; returns the outcome as a sentence.

    Raises:
        Exception: it cannot be written, or the weights cannot be loaded once more.
    """
    model: Any = overflow.skeleton.model
    architecture = type(model).__name__
    if getattr(transformers, architecture, None) is not type(model):
        return f"no capsule: {architecture} is not a transformers class"
    with unfinished(folder, overwrite=False, what="capsule") as draft:
        try:
            _write_inputs(draft.folder, overflow)
        except TypeError as error:
            return f"no capsule: {overflow.entry.unit} was called with {error}"
        for is_whole in (False, True):
            _write_model(draft.folder, overflow, weights=weights, is_whole=is_whole)
            if _breaks(draft.folder, node=overflow.located.producer.node):
                size = sum(path.stat().st_size for path in draft.folder.iterdir())
                draft.take_place()
                return f"capsule ({num_bytes(size)}): python {folder}/reproduce.py"
    return f"no capsule: run on its own, {overflow.entry.unit} does not overflow"


def _write_model(
    folder: Path, overflow: Candidate, *, weights: SharedModels, is_whole: bool
) -> None:
    """The config, the unit's weights, the script and a page that says how to run it."""
    model: Any = overflow.skeleton.model
    model.config.save_pretrained(folder)
    tensors = _weights(overflow, weights=weights, is_whole=is_whole)
    save_file(tensors, folder / "weights.safetensors")
    script = files("precheck.measure.capsule").joinpath("reproduce.py")
    (folder / "reproduce.py").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "README.md").write_text(_readme(overflow), encoding="utf-8")


def _breaks(folder: Path, *, node: OpNode) -> bool:
    """Whether the script shows this operation overflow when run by itself."""
    try:
        process = subprocess.run(  # noqa: S603  our own script
            [sys.executable, folder / "reproduce.py"],
            capture_output=True,
            check=False,
            text=True,
            cwd=folder,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False
    return process.returncode == 0 and f"{node.op} at {node.source} " in process.stdout


def _write_inputs(folder: Path, overflow: Candidate) -> None:
    skeleton, located, entry = overflow.skeleton, overflow.located, overflow.entry
    node = located.producer.node
    tensors: dict[str, Tensor] = {}
    description = {
        "architecture": type(skeleton.model).__name__,
        "attn_implementation": skeleton.attn_implementation,
        "experts_implementation": skeleton.experts_implementation,
        "dtype": skeleton.dtype.value,
        "layer": entry.unit,
        "module": node.module,
        "op": node.op,
        "source": node.source,
        "code": located.code,
        "reference_abs_max": located.producer.reference_abs_max,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "args": [_as_json(argument, tensors) for argument in entry.args],
        "kwargs": {name: _as_json(value, tensors) for name, value in entry.kwargs.items()},
    }
    text = json.dumps(description, indent=2, allow_nan=False)
    (folder / "capsule.json").write_text(text, encoding="utf-8")
    save_file(tensors, folder / "inputs.safetensors")


def _as_json(argument: Any, tensors: dict[str, Tensor]) -> Any:
    """An argument as JSON; its tensors are added to ``tensors``.

    Raises:
        TypeError: only the running model has such an object, such as a cache.
    """
    if isinstance(argument, torch.Tensor):
        name = f"tensor_{len(tensors)}"
        tensors[name] = argument
        return {"tensor": name}
    if argument is None or isinstance(argument, bool | int | float | str):
        return argument
    if isinstance(argument, Cache):
        return None  # it holds nothing of this layer yet
    if type(argument) is tuple:
        return {"tuple": [_as_json(member, tensors) for member in argument]}
    if type(argument) is list:
        return [_as_json(member, tensors) for member in argument]
    if type(argument) is dict:
        return {"dict": {str(key): _as_json(member, tensors) for key, member in argument.items()}}
    raise TypeError(f"a {type(argument).__name__}, which cannot be saved")


def _weights(overflow: Candidate, *, weights: SharedModels, is_whole: bool) -> dict[str, Tensor]:
    """Parameters and buffers of the unit by their names in it, as the run used them."""
    unit = overflow.entry.unit
    module = overflow.skeleton.model.get_submodule(unit)
    copies: dict[str, Tensor] = {}
    presence = weights.presence(overflow.skeleton)
    inside = [name for name in presence.waiting_points if name.startswith(f"{unit}.")]
    for piece in (unit, *inside):
        presence.enter(piece, (), {})
        for name, tensor in _parameters_and_buffers(module):
            owner = f"{unit}.{name}".rpartition(".")[0]
            if not tensor.is_meta and (is_whole or owner in overflow.entry.modules):
                copies[name] = tensor.detach().cpu().clone().contiguous()
        presence.leave(piece, None)
    return copies


def _parameters_and_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _readme(overflow: Candidate) -> str:
    producer = overflow.located.producer
    abs_max = producer.reference_abs_max
    takes = "" if abs_max is None else f" In float32 the result is {magnitude(abs_max)}."
    inputs = tensors_in(overflow.entry.args)
    num_tokens = max((tensor.shape[1] for tensor in inputs if tensor.dim() > 1), default=0)
    return (
        f"# {producer.node.op} at {producer.node.source} overflows in {overflow.skeleton.dtype}\n\n"
        f"One layer (`{overflow.entry.unit}`) of `{type(overflow.skeleton.model).__name__}` and "
        f"the hidden states of {num_tokens} tokens that enter it.{takes}\n\n"
        "```sh\n"
        f"pip install torch=={torch.__version__.partition('+')[0]} "
        f"transformers=={transformers.__version__}\n"
        "python reproduce.py\n"
        "```\n\n"
        "Runs in seconds, on a CPU, without the model. Hidden states can reveal the prompt: "
        "share a capsule only if you may share the prompt.\n"
    )
