"""Which stored tensors make which parameter: transformers' own renaming and merging.

The one place that reads transformers' loading internals (``core_model_loading``,
``conversion_mapping``: semi-private). Names in a checkpoint are not always names in the model, and
transformers 5 merges some tensors while it loads (experts) or splits them. Its tables are asked,
tensor by tensor, in its order; none of our own is kept.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion:
    """How stored tensors become parameters.

    Without a ``converter`` there is one of each, and only the name changes.
    """

    sources: tuple[str, ...]
    """Names in the checkpoint, in transformers' order."""
    patterns: tuple[str, ...]
    """Which of the converter's patterns each source matched."""
    target: str
    """The (first) parameter it makes."""
    converter: WeightConverter | None = None

    def convert(self, tensors: Sequence[Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Parameters by name, from the sources' tensors, already cast to the parameter's dtype."""
        if self.converter is None:
            return {self.target: tensors[0]}
        converter = deepcopy(self.converter)
        for source, pattern, tensor in zip(self.sources, self.patterns, tensors, strict=True):
            converter.add_tensor(self.target, source, pattern, tensor)  # type: ignore[arg-type]
        made = converter.convert(self.target, model=model, config=model.config)
        return {name: each[0] if isinstance(each, list) else each for name, each in made.items()}


def find_conversions(model: nn.Module, stored: Iterable[str]) -> tuple[Conversion, ...]:
    """What to do with each stored tensor that the model takes, as ``from_pretrained`` would.

    Args:
        model: built, its parameters on any device.
        stored: names of the checkpoint's tensors.
    """
    mapping = get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    known = model.state_dict()
    prefix = getattr(model, "base_model_prefix", None)
    found: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        if target in known:
            found.setdefault(target, []).append((name, pattern))
    return tuple(_recipe(target, each, by_pattern) for target, each in found.items())


def _recipe(
    target: str,
    sources: list[tuple[str, str | None]],
    by_pattern: Mapping[str, WeightConverter],
) -> Conversion:
    _, first = sources[0]
    if first is None:
        # where two stored names become one parameter, transformers takes the first
        return Conversion(sources=(sources[0][0],), patterns=(sources[0][0],), target=target)
    return Conversion(
        sources=tuple(name for name, _ in sources),
        patterns=tuple(pattern or name for name, pattern in sources),
        target=target,
        converter=by_pattern[first],
    )
