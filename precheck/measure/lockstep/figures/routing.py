"""Which tokens the routers of a mixture of experts sent where the reference's sent them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.watch.op_kinds import TOPK
from precheck.records.traces import Section

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.segment import Segment


class SameRouting:
    """Real tokens that every router so far sent to the experts that the baseline's sent them to.

    Args:
        batch: the probes.
        is_causal: whether the decoder's tokens attend to earlier ones only.
    """

    def __init__(self, batch: Batch, *, is_causal: bool) -> None:
        self._batch = batch
        self._is_causal = is_causal
        self._section: Section | None = None
        self.rows: tuple[Tensor, ...] | None = None
        """``(tokens,)`` bool on the CPU for each probe; None before the first router."""

    @property
    def tokens(self) -> Tensor | None:
        """The rows one after the other."""
        return None if self.rows is None else torch.cat(self.rows)

    def enter(self, section: Section) -> None:
        """A block begins: leaves out tokens that attend to one that was sent elsewhere."""
        if self.rows is not None and section is not self._section:
            lengths = self._is_real(section).sum(dim=1).tolist()
            self.rows = tuple(
                row.all().expand(length) for row, length in zip(self.rows, lengths, strict=True)
            )
        elif self.rows is not None and self._is_causal and section is Section.DECODER:
            self.rows = tuple(row.long().cummin(dim=0).values.bool() for row in self.rows)
        elif self.rows is not None:
            self.rows = tuple(row.all().expand_as(row) for row in self.rows)
        self._section = section

    def add(self, segment: Segment, baseline: Segment, section: Section) -> Tensor | None:
        """Adds a unit's router; real tokens, ``(tokens,)`` bool, that it sent to the same experts.

        None without a router.
        """
        chosen, expected = experts(segment), experts(baseline)
        if chosen is None or expected is None or chosen.shape != expected.shape:
            return None
        agrees = (chosen == expected).all(dim=-1).cpu()
        is_real = self._is_real(section)
        if agrees.numel() != is_real.numel():  # a tower's
            return None
        agrees = agrees[is_real.flatten()]
        rows = agrees.split(is_real.sum(dim=1).tolist())
        if self.rows is not None:
            rows = tuple(map(torch.logical_and, self.rows, rows))
        self.rows = rows
        return agrees

    def _is_real(self, section: Section) -> Tensor:
        """Which positions of what a section reads are real tokens, ``(batch, seq)`` bool."""
        if section is Section.DECODER and self._batch.decoder_input_ids is not None:
            return torch.ones(self._batch.decoder_input_ids.shape, dtype=torch.bool)
        if self._batch.attention_mask is None:
            return torch.ones(self._batch.input_ids.shape, dtype=torch.bool)
        return self._batch.attention_mask.bool().cpu()


def experts(segment: Segment) -> Tensor | None:
    """The experts of each token, ``(tokens, k)`` int64 in ascending order; None without a router.

    The last ``topk`` counts: groups of experts are chosen before experts. ``argmax`` chooses one
    expert at a time.
    """
    if not segment.routes:
        return None
    last, chosen = segment.routes[-1]
    if last.op == TOPK:
        return chosen.reshape(-1, chosen.shape[-1]).sort(dim=-1).values
    choices = [
        other.flatten()
        for node, other in segment.routes
        if node.op == last.op and other.shape == chosen.shape
    ]
    return torch.stack(choices, dim=-1).sort(dim=-1).values
