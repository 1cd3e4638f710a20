"""Which positions of a tensor are real tokens, and not padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealTokens:
    """Finds the real-token part of a tensor from its shape.

    Recognised are ``(batch, seq, ...)``, ``(batch * seq, ...)``, ``(batch, heads, seq, ...)``,
    ``(batch * heads, seq, ...)`` and ``(streams, batch, seq, hidden)``: the shapes attention and
    MLP code produces, and AltUp's. A tensor of another shape has no positions to leave out, or
    cannot be told apart.
    """

    num_rows: int
    length: int
    mask: Tensor | None

    def select(self, tensor: Tensor) -> Tensor | None:
        """The part of ``tensor`` at real tokens; None where its shape does not tell.

        Without padding it is the tensor itself, uncopied.
        """
        if self.mask is None:
            return tensor
        tensor = self._batch_first(tensor)
        rows, length, shape = self.num_rows, self.length, tensor.shape
        mask = self.mask
        if tensor.dim() >= 2 and shape[:2] == (rows, length):  # noqa: PLR2004
            return tensor[mask]
        if tensor.dim() >= 3 and shape[0] % rows == 0 and shape[1] == length:  # noqa: PLR2004
            return tensor[mask.repeat_interleave(shape[0] // rows, dim=0)]
        if tensor.dim() >= 4 and shape[0] == rows and shape[2] == length:  # noqa: PLR2004
            return tensor.transpose(1, 2)[mask]
        if tensor.dim() >= 2 and shape[0] == rows * length:  # noqa: PLR2004
            return tensor[mask.flatten()]
        return None

    def _batch_first(self, tensor: Tensor) -> Tensor:
        """Streams of hidden states behind the batch, as heads are; others as they are."""
        is_streams = (
            tensor.dim() == 4  # noqa: PLR2004
            and tensor.shape[0] % self.num_rows != 0
            and tensor.shape[1:3] == (self.num_rows, self.length)
        )
        return tensor.transpose(0, 1) if is_streams else tensor

    def tokens(self, hidden_states: Tensor) -> Tensor:
        """``(num_real_tokens, hidden)`` of a ``(batch, seq, hidden)`` or flattened tensor.

        A tensor of another sequence length (a decoder beside a padded encoder) is all real.
        """
        real = self.select(hidden_states)
        kept = hidden_states if real is None else real
        return kept.reshape(-1, kept.shape[-1])

    def first_positions(self, elements: Tensor) -> dict[int, int]:
        """By row, the first real token (counted from 0) at which ``elements`` (bool) are true.

        Empty where the shape does not tell; a row whose padding alone is hit is left out.
        """
        hit = self._by_position(elements)
        if hit is None:
            return {}
        number = torch.arange(self.length, device=hit.device).expand_as(hit)
        if self.mask is not None:
            hit, number = hit & self.mask, self.mask.long().cumsum(dim=1) - 1
        return {
            row: int(number[row][hit[row]][0])
            for row in range(self.num_rows)
            if bool(hit[row].any())
        }

    def _by_position(self, elements: Tensor) -> Tensor | None:
        """Whether an element is true, ``(batch, seq)``; None where the shape does not tell."""
        elements = self._batch_first(elements)
        rows, length, shape = self.num_rows, self.length, elements.shape
        if elements.dim() >= 2 and shape[:2] == (rows, length):  # noqa: PLR2004
            return elements.reshape(rows, length, -1).any(dim=-1)
        if elements.dim() >= 3 and shape[0] % rows == 0 and shape[1] == length:  # noqa: PLR2004
            return elements.reshape(rows, -1, length, shape[2:].numel()).any(dim=-1).any(dim=1)
        if elements.dim() >= 4 and shape[0] == rows and shape[2] == length:  # noqa: PLR2004
            return elements.flatten(3).any(dim=-1).any(dim=1)
        if elements.dim() >= 2 and shape[0] == rows * length:  # noqa: PLR2004
            return elements.reshape(rows, length, -1).any(dim=-1)
        return None

    def rows_with(self, elements: Tensor) -> tuple[int, ...]:
        """Rows of the batch that hold a true element; () where the shape does not tell.

        The leading dimension of ``elements`` (bool) is the batch, or the batch times something.
        """
        elements = self._batch_first(elements)
        if elements.dim() == 0 or elements.shape[0] == 0 or elements.shape[0] % self.num_rows:
            return ()
        hit = elements.reshape(self.num_rows, -1).any(dim=1)
        return tuple(index for index, each in enumerate(hit.tolist()) if each)
