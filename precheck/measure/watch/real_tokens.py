"""Which positions of a tensor are real tokens rather than padding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RealTokens:
    """Selects the real tokens of a tensor by its shape.

    Recognised are the shapes that attention and MLP code produces, ``(batch, seq, ...)``,
    ``(batch * seq, ...)``, ``(batch, heads, seq, ...)`` and ``(batch * heads, seq, ...)``, and
    AltUp's ``(streams, batch, seq, hidden)``. In a tensor of another shape padding cannot be
    recognised, or there is none.
    """

    num_rows: int
    length: int
    mask: Tensor | None
    first_position: int = 0
    """Of the first column: how many tokens of the text are before it."""
    _found: dict[int, Tensor] = field(default_factory=dict, init=False)

    def select(self, tensor: Tensor) -> Tensor | None:
        """The part of ``tensor`` at real tokens; None if its shape is not recognised.

        Without padding it is the tensor itself, uncopied.
        """
        if self.mask is None:
            return tensor
        tensor = self._batch_first(tensor)
        rows, length, shape = self.num_rows, self.length, tensor.shape
        if tensor.dim() >= 2 and shape[:2] == (rows, length):  # noqa: PLR2004
            return tensor.flatten(0, 1).index_select(0, self._positions(1))
        if tensor.dim() >= 3 and shape[0] % rows == 0 and shape[1] == length:  # noqa: PLR2004
            return tensor.flatten(0, 1).index_select(0, self._positions(shape[0] // rows))
        if tensor.dim() >= 4 and shape[0] == rows and shape[2] == length:  # noqa: PLR2004
            return tensor.transpose(1, 2).flatten(0, 1).index_select(0, self._positions(1))
        if tensor.dim() >= 2 and shape[0] == rows * length:  # noqa: PLR2004
            return tensor.index_select(0, self._positions(1))
        return None

    def _positions(self, num_heads: int) -> Tensor:
        """Of real tokens in ``(batch * heads * seq,)``, int64, kept: looking for them costs."""
        assert self.mask is not None  # noqa: S101  asked for only with padding
        if num_heads not in self._found:
            mask = self.mask.repeat_interleave(num_heads, dim=0)
            self._found[num_heads] = mask.flatten().nonzero().squeeze(-1)
        return self._found[num_heads]

    def mask_for(self, tensor: Tensor) -> Tensor | None:
        """Whether an element is a real token's, broadcast to the tensor.

        None without padding, or if the shape is not recognised.
        """
        if self.mask is None:
            return None
        rows, length, shape = self.num_rows, self.length, tuple(tensor.shape)
        rest = len(shape)
        if shape[:2] == (rows, length):
            return self.mask.reshape(rows, length, *[1] * (rest - 2))
        if rest >= 3 and shape[0] % rows == 0 and shape[1] == length:  # noqa: PLR2004
            mask = self.mask.repeat_interleave(shape[0] // rows, dim=0)
            return mask.reshape(shape[0], length, *[1] * (rest - 2))
        if rest >= 4 and shape[0] == rows and shape[2] == length:  # noqa: PLR2004
            return self.mask.reshape(rows, 1, length, *[1] * (rest - 3))
        if rest >= 2 and shape[0] == rows * length:  # noqa: PLR2004
            return self.mask.reshape(rows * length, *[1] * (rest - 1))
        return None

    def position_dim(self, tensor: Tensor) -> int | None:
        """Which dimension of a tensor of a batch without padding is the position; None if unknown.

        Of scores it is that of the query.
        """
        rows, length, shape = self.num_rows, self.length, tensor.shape
        if tensor.dim() >= 2 and shape[:2] == (rows, length):  # noqa: PLR2004
            return 1
        if tensor.dim() >= 3 and shape[0] % rows == 0 and shape[1] == length:  # noqa: PLR2004
            return 1
        if tensor.dim() >= 4 and shape[0] == rows and shape[2] == length:  # noqa: PLR2004
            return 2
        return 0 if tensor.dim() >= 2 and rows == 1 and shape[0] == length else None  # noqa: PLR2004

    def _batch_first(self, tensor: Tensor) -> Tensor:
        """Streams of hidden states with the batch first, as heads are; other tensors unchanged."""
        is_streams = (
            tensor.dim() == 4  # noqa: PLR2004
            and tensor.shape[0] % self.num_rows != 0
            and tensor.shape[1:3] == (self.num_rows, self.length)
        )
        return tensor.transpose(0, 1) if is_streams else tensor

    def tokens(self, hidden_states: Tensor) -> Tensor:
        """``(num_real_tokens, hidden)`` of a ``(batch, seq, hidden)`` or flattened tensor.

        A tensor of another sequence length (of a decoder with a padded encoder) is all real.
        """
        selected = self.select(hidden_states)
        real = hidden_states if selected is None else selected
        return real.reshape(-1, real.shape[-1])

    def first_positions(self, elements: Tensor) -> dict[int, int]:
        """By row, the first real token (counted from 0) at which ``elements`` (bool) are true.

        Empty if the shape is not recognised. A row that is only hit at padding is left out.
        """
        hits = self._by_position(elements)
        if hits is None:
            return {}
        numbers = torch.arange(self.length, device=hits.device).expand_as(hits)
        if self.mask is not None:
            hits, numbers = hits & self.mask, self.mask.long().cumsum(dim=1) - 1
        return {
            row: self.first_position + int(numbers[row][hits[row]][0])
            for row in range(self.num_rows)
            if bool(hits[row].any())
        }

    def _by_position(self, elements: Tensor) -> Tensor | None:
        """Whether an element is true, ``(batch, seq)``; None if the shape is not recognised."""
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
        """Rows of the batch that hold a true element; () if the shape is not recognised.

        The leading dimension of ``elements`` (bool) is the batch, or the batch times something.
        """
        elements = self._batch_first(elements)
        if elements.dim() == 0 or elements.shape[0] == 0 or elements.shape[0] % self.num_rows:
            return ()
        hits = elements.reshape(self.num_rows, -1).any(dim=1)
        return tuple(row for row, is_hit in enumerate(hits.tolist()) if is_hit)
