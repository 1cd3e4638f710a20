"""Runs a model in float32 on many short inputs, and says how large each makes every operation."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.architecture import token_embedding
from precheck.measure.hunt.row_maxima import AllSeenError, RowMaxima
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.tokens import with_decoder_input
from precheck.measure.subject.token_inputs import decoder_start
from precheck.measure.watch.module_stack import ModuleStack

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from torch import Tensor, nn

    from precheck.measure.hunt.targets import Target
    from precheck.measure.models.skeleton import Skeleton

MIXED_TOLERANCE = 1e-3
"""Relative: a row alone and the same row in a batch differ by rounding, which is below 1e-5."""


@dataclass(slots=True, kw_only=True)
class Work:
    """What a search has cost so far."""

    num_forwards: int = 0
    num_inputs: int = 0
    num_tokens: int = 0
    longest: int = 0
    """Tokens of the longest input."""

    def add(self, rows: Tensor) -> None:
        """Counts a forward of token ids ``(rows, seq)``."""
        self.num_forwards += 1
        self.num_inputs += len(rows)
        self.num_tokens += rows.numel()
        self.longest = max(self.longest, rows.shape[1])


@dataclass(slots=True, eq=False)
class Evaluator:
    """The largest magnitude of every target for token ids, from the model's own forward.

    Args:
        skeleton: the float32 model, all weights in memory.
        targets: the operations; those that no input reaches are dropped.
        device: the model's.
    """

    skeleton: Skeleton
    targets: list[Target]
    device: str
    work: Work = field(default_factory=Work)
    mixed: frozenset[int] = frozenset()
    """Numbers of targets that hold the rows of a batch in another order: experts, for example."""
    by_image: frozenset[int] = frozenset()
    """Numbers of targets that an image reaches and text alone does not: those of a tower."""
    stack: ModuleStack = field(init=False)
    _start: int = field(init=False)

    def __post_init__(self) -> None:
        self.stack = ModuleStack(self.skeleton.model)
        self._start = decoder_start(self.skeleton.model)

    def close(self) -> None:
        """Removes the hooks."""
        self.stack.detach()

    @property
    def embedding(self) -> nn.Module | None:
        """Of token ids; None where the model declares none."""
        return token_embedding(self.skeleton.model)

    def prepare(self, rows: Tensor, image: Batch | None) -> None:
        """Finds out which targets are reached, and of which a batch does not tell the rows.

        Args:
            rows: some different token ids, ``(3, seq)`` int64, ``seq`` no multiple of 3.
            image: an input with an image; None where the model takes none.
        """
        together = self._watch(rows)
        alone = [self._watch(row) for row in rows.split(1)]
        by_image = set() if image is None else set(self._watch_batch(image).maxima)
        by_image -= set(together.maxima)
        reached = by_image.union(together.maxima)
        seen = [number for number in range(len(self.targets)) if number in reached]
        mixed = set()
        for new, number in enumerate(seen):
            if number in by_image:
                continue
            single = torch.cat([one.maxima[number] for one in alone if number in one.maxima])
            whole = together.maxima[number]
            same = single.shape == whole.shape and torch.allclose(
                single, whole, rtol=MIXED_TOLERANCE
            )
            if not same:
                mixed.add(new)
        self.targets = [self.targets[number] for number in seen]
        self.mixed = frozenset(mixed)
        self.by_image = frozenset(new for new, number in enumerate(seen) if number in by_image)

    def values(self, rows: Tensor, *, wanted: Sequence[int] | None = None) -> Tensor:
        """Largest magnitudes, ``(rows, targets)`` float32; of mixed targets, that of the batch.

        Args:
            rows: token ids ``(rows, seq)`` int64.
            wanted: numbers of targets, the others are 0: the forward ends with the last of them.
        """
        return self._columns(self._watch(rows, wanted=wanted), num_rows=len(rows))

    def values_of(self, batch: Batch) -> Tensor:
        """The same of one input with an image, ``(targets,)`` float32."""
        return self._columns(self._watch_batch(batch), num_rows=1)[0]

    def _columns(self, watched: RowMaxima, *, num_rows: int) -> Tensor:
        nothing = torch.zeros(num_rows)
        columns = [watched.maxima.get(number, nothing) for number in range(len(self.targets))]
        return torch.stack([column.float().cpu() for column in columns], dim=1)

    def lanes(
        self, rows: Tensor, numbers: Collection[int], *, wanted: Sequence[int] | None = None
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The same, and of some targets the largest magnitudes by the last dimension."""
        watched = self._watch(rows, wanted=wanted, by_lane=numbers)
        return self._columns(watched, num_rows=len(rows)), watched.lanes

    def operands(self, rows: Tensor, number: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What a product of activations reads, for rows of one token.

        Args:
            rows: token ids ``(rows, 1)`` int64.
            number: of the product, whose last two arguments are wanted.
            positions: of the tokens, ``(rows, 1)`` int64.

        Returns:
            The first as it is, ``(..., 1, width)``, and the second as it is, ``(..., width, 1)``.
        """
        watched = self._watch(rows, wanted=[number], kept=number, positions=positions)
        first, second = watched.operands[-2:]
        return first.detach(), second.detach()

    def slopes(self, rows: Tensor, number: int, lane: int | None) -> Tensor | None:
        """How the largest magnitude of a target changes with each token's embedding.

        Args:
            rows: token ids ``(rows, seq)`` int64.
            number: of the target.
            lane: of its last dimension; None: wherever it is largest.

        Returns:
            ``(rows, seq, hidden)`` float32, or None where there is no gradient.
        """
        embedding = self.embedding
        if embedding is None:
            return None
        leaves: list[Tensor] = []

        def detached(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
            leaf = output.detach().requires_grad_()
            leaves.append(leaf)
            return leaf

        handle = embedding.register_forward_hook(detached)
        try:
            with torch.enable_grad():
                watched = self._watch(rows, wanted=[number], kept=number)
                return _slopes(watched.result, leaves, lane=lane, num_rows=len(rows))
        finally:
            handle.remove()

    def _watch(
        self,
        rows: Tensor,
        *,
        wanted: Sequence[int] | None = None,
        by_lane: Collection[int] = (),
        kept: int | None = None,
        positions: Tensor | None = None,
    ) -> RowMaxima:
        if wanted is None:
            wanted = [n for n in range(len(self.targets)) if n not in self.by_image]
        watcher = RowMaxima(
            stack=self.stack,
            wanted={self.targets[number].key: number for number in wanted},
            num_rows=len(rows),
            mixed=self.mixed,
            by_lane=by_lane,
            kept=kept,
        )
        inputs = self.inputs(rows)
        if positions is not None:
            inputs["position_ids"] = positions.to(self.device)
        has_slopes = kept is not None and positions is None
        with torch.set_grad_enabled(has_slopes), suppress(AllSeenError), watcher:
            self.skeleton.model(**inputs)
        self.work.add(rows)
        return watcher

    def _watch_batch(self, batch: Batch) -> RowMaxima:
        watcher = RowMaxima(
            stack=self.stack,
            wanted={target.key: number for number, target in enumerate(self.targets)},
            num_rows=1,
        )
        with torch.no_grad(), suppress(AllSeenError), watcher:
            self.skeleton.model(**self._inputs_of(batch.to(self.device)))
        self.work.add(batch.input_ids)
        return watcher

    def inputs(self, rows: Tensor) -> dict[str, object]:
        """The arguments of the model's forward for token ids ``(rows, seq)``."""
        batch = Batch(probes=(), input_ids=rows.to(self.device))
        if self.skeleton.is_encoder_decoder:
            batch = with_decoder_input(batch, start_id=self._start)
        return self._inputs_of(batch)

    def _inputs_of(self, batch: Batch) -> dict[str, object]:
        inputs = self.skeleton.inputs(batch)
        if "logits_to_keep" in self.skeleton.accepts:
            inputs["logits_to_keep"] = 1  # a head costs more than all layers of a small model
        return inputs


def _slopes(
    result: Tensor | None, leaves: list[Tensor], *, lane: int | None, num_rows: int
) -> Tensor | None:
    if result is None or not result.requires_grad or not leaves:
        return None
    values = result if lane is None else result[..., lane]
    if values.shape[0] % num_rows:
        values = values.reshape(1, -1)
    largest = values.reshape(min(num_rows, values.shape[0]), -1).abs().amax(dim=1)
    (slopes,) = torch.autograd.grad(largest.sum(), leaves[0], allow_unused=True)
    return slopes


def in_steps(rows: Sequence[Sequence[int]], *, most_tokens: int) -> Iterator[Tensor]:
    """Rows of one length as tensors of at most so many tokens each, but at least one row."""
    step = max(1, most_tokens // max(1, len(rows[0])))
    for start in range(0, len(rows), step):
        yield torch.tensor(rows[start : start + step], dtype=torch.long)
