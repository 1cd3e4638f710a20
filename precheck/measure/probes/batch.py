"""A batch of probes, and which of its positions are real tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.records.traces import Probe

_PATCH = 3 * 14 * 14
"""Numbers in a patch of most vision towers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Probes that run together, a row each.

    ``input_ids`` is ``(batch, seq)`` int64. ``attention_mask`` has the same shape, 1 at real
    tokens, or is None where every token is real. ``decoder_input_ids`` ``(batch, target)`` only
    for encoder-decoder models; all of its tokens are real. Of a model that hears, ``input_ids``
    are those of its decoder.
    """

    probes: tuple[Probe, ...]
    input_ids: Tensor
    attention_mask: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    media: dict[str, Tensor] = field(default_factory=dict)
    """What the model is given beside token ids, by the name of its argument; one probe a batch."""

    @property
    def num_positions(self) -> int:
        """Tokens, and about as many more as a tower sees."""
        return self.input_ids.numel() + self.num_media_positions

    @property
    def num_media_positions(self) -> int:
        """About how many patches or frames a tower sees; 0 for text."""
        return sum(
            each.shape[0] if each.dim() == 2 else each.numel() // _PATCH  # noqa: PLR2004
            for each in self.media.values()
            if each.is_floating_point()
        )

    @property
    def is_padded(self) -> bool:
        """Whether some positions are not real tokens."""
        return self.attention_mask is not None

    @property
    def num_real_tokens(self) -> int:
        """Real tokens of all probes."""
        return sum(probe.num_tokens for probe in self.probes)

    def real_offset(self, row: int) -> int:
        """Real tokens of the probes before ``row``."""
        return sum(probe.num_tokens for probe in self.probes[:row])

    def to(self, device: str) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return Batch(
            probes=self.probes,
            input_ids=self.input_ids.to(device),
            attention_mask=move(self.attention_mask),
            decoder_input_ids=move(self.decoder_input_ids),
            media={name: each.to(device) for name, each in self.media.items()},
        )

    @property
    def real_tokens(self) -> RealTokens:
        """Which positions count."""
        mask = self.attention_mask
        return RealTokens(
            num_rows=self.input_ids.shape[0],
            length=self.input_ids.shape[1],
            mask=None if mask is None else mask.bool(),
        )


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


def stack_rows(rows: list[list[int]]) -> Tensor:
    """Token ids ``(batch, seq)`` of rows of one length."""
    return torch.tensor(rows, dtype=torch.long)
