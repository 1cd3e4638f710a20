"""A capsule: the layer that overflows, its inputs and a script, for somebody without the model.

Idea. While a scan looks into a unit that breaks, the arguments of one row of the batch are kept.
Afterwards the unit's weights are put in once more, as the run used them, and written beside the
arguments: of the modules that had run when it broke, or of all where those are not enough. The
script that goes along is run in a process of its own; what does not break there is not handed out.

What it cannot hold: embeddings and heads (no decoder layer), models whose code is not in
transformers, and sums that overflow inside a product, which only some kernels do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import save_file
from transformers.cache_utils import Cache

from precheck.measure.watch.trees import tensors_in
from precheck.records.quantities import magnitude, num_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from precheck.measure.blame.found import Entry, LocatedProducer
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.watch.segment import OpNode


_SECONDS = 600
"""What the script may take; it runs one layer twice."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidate:
    """An overflow of a run that was kept with its arguments."""

    skeleton: Skeleton
    found: LocatedProducer
    entry: Entry


def candidate(
    runs: Iterable[tuple[Skeleton, list[tuple[LocatedProducer, bool]]]],
) -> Candidate | None:
    """The overflow to hand out: the first of the first run that does not absorb it."""
    kept = [
        (
            (is_absorbed, number, found.place.order, found.producer.node.index),
            Candidate(skeleton=skeleton, found=found, entry=found.entry),
        )
        for number, (skeleton, all_found) in enumerate(runs)
        if not skeleton.dtype.is_reference and skeleton.configuration.is_plain
        for found, is_absorbed in all_found
        if found.entry is not None
    ]
    return min(kept, key=lambda each: each[0])[1] if kept else None


def write_capsule(folder: Path, found: Candidate, *, weights: SharedModels) -> str:
    """Writes the capsule and tries it; returns what came of it, as a sentence."""
    model: Any = found.skeleton.model
    architecture = type(model).__name__
    if getattr(transformers, architecture, None) is not type(model):
        return f"no capsule: {architecture} is not a class of transformers"
    with tempfile.TemporaryDirectory(prefix=".precheck-", dir=folder.resolve().parent) as parts:
        made = Path(parts) / "capsule"
        for is_whole in (False, True):
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            try:
                _write_inputs(made, found)
            except TypeError as error:
                return f"no capsule: {found.entry.unit} was called with {error}"
            model.config.save_pretrained(made)
            tensors = _weights(found, weights=weights, is_whole=is_whole)
            save_file(tensors, made / "weights.safetensors")
            script = (
                files("precheck.measure.capsule")
                .joinpath("reproduce.py")
                .read_text(encoding="utf-8")
            )
            (made / "reproduce.py").write_text(script, encoding="utf-8")
            (made / "README.md").write_text(_readme(found), encoding="utf-8")
            if _breaks(made, node=found.found.producer.node):
                size = sum(each.stat().st_size for each in made.iterdir())
                if folder.exists():
                    folder.rmdir()
                made.rename(folder)
                return f"capsule ({num_bytes(size)}): python {folder}/reproduce.py"
    return f"no capsule: {found.entry.unit} alone does not overflow outside the scan"


def _breaks(folder: Path, *, node: OpNode) -> bool:
    """Whether the script shows this operation overflow, as somebody else would run it."""
    try:
        ran = subprocess.run(  # noqa: S603  our own script
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
    return ran.returncode == 0 and f"{node.op} at {node.source} " in ran.stdout


def _write_inputs(folder: Path, found: Candidate) -> None:
    node, skeleton, entry = found.found.producer.node, found.skeleton, found.entry
    stored: dict[str, Tensor] = {}
    told = {
        "architecture": type(skeleton.model).__name__,
        "attn_implementation": skeleton.attn_implementation,
        "experts_implementation": skeleton.experts_implementation,
        "dtype": skeleton.dtype.value,
        "layer": entry.unit,
        "module": node.module,
        "op": node.op,
        "source": node.source,
        "code": found.found.code,
        "reference_abs_max": found.found.producer.reference_abs_max,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "args": [_told(each, stored) for each in entry.args],
        "kwargs": {name: _told(each, stored) for name, each in entry.kwargs.items()},
    }
    text = json.dumps(told, indent=2, allow_nan=False)
    (folder / "capsule.json").write_text(text, encoding="utf-8")
    save_file(stored, folder / "inputs.safetensors")


def _told(tree: Any, stored: dict[str, Tensor]) -> Any:
    """An argument as JSON, its tensors put into ``stored``.

    Raises:
        TypeError: it is something that only the running model has, such as a cache.
    """
    if isinstance(tree, torch.Tensor):
        name = f"tensor_{len(stored)}"
        stored[name] = tree
        return {"tensor": name}
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    if isinstance(tree, Cache):
        return None  # it holds nothing of this layer yet
    if type(tree) is tuple:
        return {"tuple": [_told(each, stored) for each in tree]}
    if type(tree) is list:
        return [_told(each, stored) for each in tree]
    if type(tree) is dict:
        return {"dict": {str(key): _told(each, stored) for key, each in tree.items()}}
    raise TypeError(f"a {type(tree).__name__}, which cannot be written down")


def _weights(found: Candidate, *, weights: SharedModels, is_whole: bool) -> dict[str, Tensor]:
    """Parameters and buffers of the unit by their names in it, as the run used them."""
    unit = found.entry.unit
    module = found.skeleton.model.get_submodule(unit)
    kept: dict[str, Tensor] = {}
    presence = weights.presence(found.skeleton)
    inside = [name for name in presence.waiting_points if name.startswith(f"{unit}.")]
    for piece in (unit, *inside):
        presence.enter(piece, (), {})
        for name, tensor in _held(module):
            owner = f"{unit}.{name}".rpartition(".")[0]
            if not tensor.is_meta and (is_whole or owner in found.entry.modules):
                kept[name] = tensor.detach().cpu().clone().contiguous()
        presence.leave(piece, None)
    return kept


def _held(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]


def _readme(found: Candidate) -> str:
    producer = found.found.producer
    needed = producer.reference_abs_max
    takes = "" if needed is None else f" It takes {magnitude(needed)} in float32."
    tokens = max(
        (each.shape[1] for each in tensors_in(found.entry.args) if each.dim() > 1), default=0
    )
    return (
        f"# {producer.node.op} at {producer.node.source} overflows in {found.skeleton.dtype}\n\n"
        f"One layer (`{found.entry.unit}`) of `{type(found.skeleton.model).__name__}` and the "
        f"hidden states of {tokens} tokens that enter it.{takes}\n\n"
        "```sh\n"
        f"pip install torch=={torch.__version__.partition('+')[0]} "
        f"transformers=={transformers.__version__}\n"
        "python reproduce.py\n"
        "```\n\n"
        "Runs in seconds, on a CPU, without the model. Hidden states can tell what the prompt was: "
        "share a capsule only if the prompt may be shared.\n"
    )
