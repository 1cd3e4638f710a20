"""A run's hidden states and routing against its reference's, in float64."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.records.stats import TensorStats
from precheck.records.traces import LayerTrace, Section

if TYPE_CHECKING:
    from torch import Tensor


CHUNK_ELEMENTS = 1 << 20
"""Elements cast to float64 at a time: their 8 MiB stay in the cache. All logits of 512 tokens and
152k words would need 622 MB."""


def token_errors(hidden_states: Tensor, reference: Tensor) -> Tensor:
    """``||x - r|| / ||r||`` of every token, ``(tokens,)`` float64 on the CPU.

    Both are ``(tokens, hidden)``. An error is not finite where ``x`` is not, and 0 where both are
    zero. The mean of these errors gives every token the same weight. A norm over the whole tensor
    would show only the few tokens with massive activations.
    """
    step = max(1, CHUNK_ELEMENTS // max(1, hidden_states.shape[-1]))
    errors = [torch.empty(0, dtype=torch.float64)]
    for start in range(0, hidden_states.shape[0], step):
        states = float64(hidden_states[start : start + step])
        expected = float64(reference[start : start + step])
        norm = _norm(expected)
        distance = _norm(states - expected)
        error = torch.where((norm == 0) & (distance == 0), norm, distance / norm)
        errors.append(error.cpu())
    return torch.cat(errors)


def _norm(tokens: Tensor) -> Tensor:
    """The norm of each row, ``(tokens,)``, from a product: several times faster than ``norm``."""
    squares: Tensor = torch.linalg.vecdot(tokens, tokens)
    return squares.sqrt_()


def float64(tensor: Tensor) -> Tensor:
    """The same numbers in float64, on the CPU if the device has no float64."""
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).double()


@dataclass(slots=True)
class Mean:
    """A running mean: the sum of the values and their number."""

    total: float = 0.0
    count: int = 0

    def add(self, values: Tensor) -> None:
        """Adds the finite elements of ``values`` (float64)."""
        finite = values[values.isfinite()]
        self.total += float(finite.sum())
        self.count += finite.numel()

    def merge(self, other: Mean) -> Mean:
        """The mean of both sets of values together."""
        return Mean(total=self.total + other.total, count=self.count + other.count)

    @property
    def value(self) -> float | None:
        """The mean; None before the first value."""
        return self.total / self.count if self.count else None


def merged(first: Mean | None, second: Mean | None) -> Mean | None:
    """The mean of both, or of the one that is not None."""
    return first.merge(second) if first is not None and second is not None else first or second


@dataclass(slots=True)
class LayerTotals:
    """Statistics of one decoder layer over a batch."""

    index: int
    section: Section
    module: str
    stats: TensorStats = field(default_factory=TensorStats)
    error: Mean = field(default_factory=Mean)
    error_same_routing: Mean | None = None
    routing: Mean | None = None

    def add(self, tokens: Tensor, reference: Tensor | None, same_routing: Tensor | None) -> None:
        """Adds the layer's output over a batch, ``(tokens, hidden)``.

        ``same_routing`` (bool, ``(tokens,)``) marks tokens that every router so far sent to the
        experts that the reference's sent them to; None without a router.
        """
        self.stats = self.stats.merge(tensor_stats(tokens))
        if reference is None or reference.shape != tokens.shape:
            return
        errors = token_errors(tokens, reference)
        self.error.add(errors)
        if same_routing is not None and same_routing.shape == errors.shape:
            self.error_same_routing = self.error_same_routing or Mean()
            self.error_same_routing.add(errors[same_routing])

    def add_routing(self, agrees: Tensor) -> None:
        """Adds which tokens this layer's router sent to the reference's experts (bool)."""
        self.routing = self.routing or Mean()
        self.routing.add(agrees.double())

    def merge(self, other: LayerTotals) -> LayerTotals:
        """The statistics of both sets of batches."""
        return LayerTotals(
            index=self.index,
            section=self.section,
            module=self.module,
            stats=self.stats.merge(other.stats),
            error=self.error.merge(other.error),
            error_same_routing=merged(self.error_same_routing, other.error_same_routing),
            routing=merged(self.routing, other.routing),
        )

    @property
    def trace(self) -> LayerTrace:
        """The layer as the report holds it."""
        same = self.error_same_routing
        return LayerTrace(
            index=self.index,
            section=self.section,
            module=self.module,
            abs_max=self.stats.abs_max,
            num_nan=self.stats.num_nan,
            num_inf=self.stats.num_inf,
            relative_error=self.error.value,
            relative_error_same_routing=None if same is None else same.value,
            routing_agreement=None if self.routing is None else self.routing.value,
        )
