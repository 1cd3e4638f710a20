"""How large the stored weights are that an unknown multiplies."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.checkpoint.rewriting import block_of
from precheck.cure.scales.blocks import blocks
from precheck.cure.scales.forms import Kind
from precheck.records.outcomes.fix import TensorChange

if TYPE_CHECKING:
    from precheck.checkpoint.weights import Weights
    from precheck.cure.scales.forms import Unknown
    from precheck.cure.scales.traced_checkpoint import TracedCheckpoint


@dataclass(slots=True)
class WeightRange:
    """Sizes of some weights."""

    abs_max: float = 0.0
    sum_of_squares: float = 0.0
    num_elements: int = 0

    @property
    def root_mean_square(self) -> float:
        """What their products are about as large as; 0 for biases and norms, which have none."""
        return math.sqrt(self.sum_of_squares / max(1, self.num_elements))


def weight_ranges(traced: TracedCheckpoint, stored: Weights) -> dict[Unknown, WeightRange]:
    """The sizes of the weights of every unknown; reads each tensor once."""
    by_parameter: defaultdict[str, list[Unknown]] = defaultdict(list)
    for unknown in traced.scales.unknowns:
        if unknown.kind is Kind.WEIGHT:
            by_parameter[unknown.name].append(unknown)
    ranges: dict[Unknown, WeightRange] = {}
    for name, unknowns in by_parameter.items():
        # in the place of its power each block carries the number of its unknown
        marked = [
            TensorChange(power=number, block=block)
            for number, unknown in enumerate(unknowns, start=1)
            for block in blocks(unknown, traced.scales.partitions)
        ]
        for source, several in traced.source_changes(name, marked, stored).items():
            tensor = stored[source]
            for change in several:
                part = block_of(tensor, change.block).float()
                known = ranges.setdefault(unknowns[change.power - 1], WeightRange())
                known.abs_max = max(known.abs_max, float(part.abs().max()))
                if tensor.dim() > 1:
                    known.sum_of_squares += float(part.double().square().sum())
                    known.num_elements += part.numel()
    return ranges
