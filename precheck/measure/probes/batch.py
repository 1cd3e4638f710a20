"""A batch of probes, and which of its positions are real tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.watch.real_tokens import RealTokens
from precheck.records.outcomes.positions import columns_by_bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from precheck.records.traces import Probe


_PATCH = 3 * 14 * 14
"""Numbers in a patch of most vision towers."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Probes that run together, a row each.

    ``input_ids`` is ``(batch, seq)`` int64. ``attention_mask`` has the same shape, 1 at real
    tokens, or is None where every token is real. ``decoder_input_ids`` ``(batch, target)`` is only
    for encoder-decoder models; all of its tokens are real. For a speech model, ``input_ids`` are
    those of its decoder.
    """

    probes: tuple[Probe, ...]
    input_ids: Tensor
    attention_mask: Tensor | None = None
    decoder_input_ids: Tensor | None = None
    media: dict[str, Tensor] = field(default_factory=dict)
    """Model inputs besides token ids, by the name of the argument; such a batch is one probe."""
    is_by_position: bool = False
    """Its figures are told by position too."""
    first_position: int = 0
    """Of a part of a text: how many tokens are before it."""

    @property
    def num_positions(self) -> int:
        """Tokens, plus about the number of patches or frames of a tower."""
        return self.input_ids.numel() + self.num_media_positions

    @property
    def num_media_positions(self) -> int:
        """About how many patches or frames a tower reads; 0 for text."""
        return sum(
            tensor.shape[0] if tensor.dim() == 2 else tensor.numel() // _PATCH  # noqa: PLR2004
            for tensor in self.media.values()
            if tensor.is_floating_point()
        )

    @property
    def is_padded(self) -> bool:
        """Whether some positions are not real tokens."""
        return self.attention_mask is not None

    @property
    def num_real_tokens(self) -> int:
        """Real tokens of all probes."""
        return sum(probe.num_tokens for probe in self.probes)

    @property
    def columns_by_bucket(self) -> list[tuple[int, slice]]:
        """Its columns in each bucket of positions, by number; none where they are not told."""
        if not self.is_by_position:
            return []
        return columns_by_bucket(
            self.probes[0].num_tokens, first=self.first_position, count=self.input_ids.shape[1]
        )

    def rows(self) -> Iterator[Batch]:
        """Each probe as a batch of its own, without padding."""
        for row, probe in enumerate(self.probes):
            ids, target = self.input_ids[row : row + 1], self.decoder_input_ids
            if self.attention_mask is not None:
                ids = ids[:, self.attention_mask[row].bool()]
            yield Batch(
                probes=(probe,),
                input_ids=ids,
                decoder_input_ids=None if target is None else target[row : row + 1],
                media=self.media,
            )

    def parts(self, num_tokens: int) -> Iterator[Batch]:
        """Successive parts of the texts, of so many tokens each; the probes are those of all."""
        for start in range(0, self.input_ids.shape[1], num_tokens):
            yield self.columns(slice(start, start + num_tokens))

    def columns(self, columns: slice) -> Batch:
        """Some columns of a batch of texts without padding; the probes are the same."""
        start, _, _ = columns.indices(self.input_ids.shape[1])
        return replace(self, input_ids=self.input_ids[:, columns], first_position=start)

    def of_probes(self, is_kept: Callable[[Probe], bool]) -> Batch:
        """The rows of some probes; at least one has to be kept."""
        rows = [row for row, probe in enumerate(self.probes) if is_kept(probe)]
        mask, target = self.attention_mask, self.decoder_input_ids
        return Batch(
            probes=tuple(self.probes[row] for row in rows),
            input_ids=self.input_ids[rows],
            attention_mask=None if mask is None else mask[rows],
            decoder_input_ids=None if target is None else target[rows],
            media=self.media,
        )

    def to(self, device: str) -> Batch:
        """The same batch on another device."""

        def move(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=move(self.attention_mask),
            decoder_input_ids=move(self.decoder_input_ids),
            media={name: tensor.to(device) for name, tensor in self.media.items()},
        )

    @property
    def real_tokens(self) -> RealTokens:
        """Which positions are no padding."""
        mask = self.attention_mask
        return RealTokens(
            num_rows=self.input_ids.shape[0],
            length=self.input_ids.shape[1],
            mask=None if mask is None else mask.bool(),
            first_position=self.first_position,
        )


def stack_rows(rows: list[list[int]]) -> Tensor:
    """Token ids ``(batch, seq)`` of rows of one length."""
    return torch.tensor(rows, dtype=torch.long)
