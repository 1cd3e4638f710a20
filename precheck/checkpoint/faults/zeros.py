"""Weights that are all zero by accident; some are made that way.

Made so are parameters that are zero in every layer (initialised so, and not trained), and a layer
that was added to do nothing: the last weight of each of its parts is zero, the others are not.

**Source**: LLaMA Pro, section 3.2 (https://arxiv.org/abs/2401.02415)
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from precheck.records.finding import module_pattern

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence


def lost_weights(shapes: Mapping[str, tuple[int, ...]], zero: Collection[str]) -> tuple[str, ...]:
    """Which all-zero weights are unlike those of the other layers.

    Args:
        shapes: of every floating-point tensor, in the order of the checkpoint.
        zero: names of those without an element that is not zero.

    >>> shapes = {f"layers.{layer}.mlp.weight": (8, 8) for layer in range(3)}
    >>> lost_weights(shapes, {"layers.1.mlp.weight"}), lost_weights(shapes, set(shapes))
    (('layers.1.mlp.weight',), ())
    """
    # a bias or a row may be zero by right: RoBERTa has one type of token, and zeroes for it
    matrices = [name for name, shape in shapes.items() if sum(size > 1 for size in shape) > 1]
    alike: defaultdict[str, list[str]] = defaultdict(list)
    layers: defaultdict[str, list[str]] = defaultdict(list)
    for name in matrices:
        alike[module_pattern(name)].append(name)
        layers[layer_of(name)].append(name)
    return tuple(
        name
        for name in matrices
        if name in zero
        and _is_unlike(alike[module_pattern(name)], zero)
        and not _does_nothing(layers[layer_of(name)], zero)
    )


def layer_of(tensor: str) -> str:
    """The repeated block a tensor belongs to, else its module.

    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("lm_head.weight")
    ('model.layers.3', 'lm_head')
    """
    parts = tensor.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: len(parts) - 1 if number is None else number + 1]) or tensor


def _is_unlike(alike: Sequence[str], zero: Collection[str]) -> bool:
    """Whether others of the kind are not zero; of a lone one, whether a module owns it."""
    if len(alike) == 1:  # a mask token or a table of positions is a parameter of its own
        return alike[0].endswith(".weight")
    return any(name not in zero for name in alike)


def _does_nothing(layer: Sequence[str], zero: Collection[str]) -> bool:
    """Whether each part of a layer (attention, MLP) has a weight that is zero, and others."""
    parts: defaultdict[str, set[bool]] = defaultdict(set)
    for name in layer:
        parts[name.removeprefix(f"{layer_of(name)}.").split(".")[0]].add(name in zero)
    return len(parts) > 1 and all(kinds == {True, False} for kinds in parts.values())
