"""Which stored tensors make which parameter: transformers' own renaming and merging.

The one place that reads transformers' loading internals (``core_model_loading``,
``conversion_mapping``: semi-private). Names in a checkpoint are not always names in the model, and
transformers 5 merges some tensors while it loads (experts) or splits them. Its own tables are
applied, tensor by tensor, in its order; there is no table here.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from precheck.checkpoint.torch_dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from precheck.checkpoint.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conversion:
    """How stored tensors become parameters.

    Without a ``converter`` one stored tensor is one parameter, and only the name changes.
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
        converted = converter.convert(self.target, model=model, config=model.config)
        return {
            name: result[0] if isinstance(result, list) else result
            for name, result in converted.items()
        }

    def parameter_names(self, model: nn.Module, stored: Weights) -> tuple[str, ...]:
        """Names of the parameters it makes; tensors without memory are converted to find out."""
        if self.converter is None:
            return (self.target,)
        empty = [
            torch.empty(stored.shape(name), dtype=torch_dtype(stored.dtype(name)), device="meta")
            for name in self.sources
        ]
        return tuple(self.convert(empty, model))


def find_conversions(model: nn.Module, stored: Iterable[str]) -> tuple[Conversion, ...]:
    """The conversion of each stored tensor that the model takes, as ``from_pretrained`` does it.

    Args:
        model: built, its parameters on any device.
        stored: names of the checkpoint's tensors.
    """
    mapping = get_model_conversion_mapping(model) if isinstance(model, PreTrainedModel) else []
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    state_dict = model.state_dict()
    prefix = getattr(model, "base_model_prefix", None)
    sources: dict[str, list[tuple[str, str | None]]] = {}
    for name in sorted(stored, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state_dict)
        if target not in state_dict and name in state_dict:
            target, pattern = rename_source_key(name, [], [], prefix, state_dict)
        if target in state_dict:
            sources.setdefault(target, []).append((name, pattern))
    return tuple(_conversion(target, names, by_pattern) for target, names in sources.items())


def _conversion(
    target: str,
    sources: list[tuple[str, str | None]],
    by_pattern: Mapping[str, WeightConverter],
) -> Conversion:
    first_source, first_pattern = sources[0]
    if first_pattern is None:
        # where two stored names become one parameter, transformers takes the first
        return Conversion(sources=(first_source,), patterns=(first_source,), target=target)
    return Conversion(
        sources=tuple(name for name, _ in sources),
        patterns=tuple(pattern or name for name, pattern in sources),
        target=target,
        converter=by_pattern[first_pattern],
    )
