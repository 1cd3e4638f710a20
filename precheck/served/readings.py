"""What every configuration says at the positions that a server answered, in one pass in lockstep.

The tokens that the server wrote are fed back, so that each position is compared by itself: a
difference does not add up along the text.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from precheck.measure.lockstep.witness import Witness
from precheck.measure.probes.rows import Row, batch_of, cut_or_filled, in_batches
from precheck.records.outcomes.served import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Answer

NUM_TOP = 5
"""Likeliest tokens of a run that a comparison needs at each position."""
_CHUNK_ROWS = 32
"""Positions at once: with a vocabulary of 152k, 39 MB in float64."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """One run at the positions of one answer; natural logarithms, NaN where the run is NaN.

    A position predicts the token of one :class:`Place`, in their order.
    """

    at_told: NDArray[np.float64]
    """Log-probabilities of the tokens that the server told, ``(positions, most told)``; -inf where
    a position has fewer."""
    at_token: NDArray[np.float64]
    """Of the token that stands there, ``(positions,)``."""
    rank: NDArray[np.int64]
    """How many tokens the run finds likelier than that one, ``(positions,)``."""
    lowest: NDArray[np.float64]
    """Of the unlikeliest token, ``(positions,)``."""
    top: NDArray[np.float64]
    """Of the run's likeliest tokens, ``(positions, NUM_TOP)``; fewer in a smaller vocabulary."""
    top_ids: NDArray[np.int64]

    @property
    def is_finite(self) -> bool:
        """Whether the run has probabilities everywhere."""
        return bool(np.isfinite(self.at_token).all())


@dataclass(slots=True, eq=False)
class ReadingWitness(Witness):
    """Reads the logits of every run at the positions of the answers.

    Args:
        answers: by name.
    """

    answers: dict[str, Answer]
    num_top: int = NUM_TOP
    """Likeliest tokens of each run that are kept at each position."""
    readings: dict[Configuration, dict[str, Reading]] = field(default_factory=dict)
    """Of every run, by the name of the answer."""

    def record_output(self, skeleton: Skeleton, batch: Batch, logits: Tensor) -> None:
        """Keeps what the run says of the tokens that the server told."""
        of_run = self.readings.setdefault(skeleton.configuration, {})
        for row, probe in enumerate(batch.probes):
            answer = self.answers.get(probe.name)
            if answer is not None:
                of_run[answer.name] = read_row(logits[row], answer, num_top=self.num_top)


def sequences(answers: Sequence[Answer]) -> tuple[Batch, ...]:
    """Prompts with their continuations, filled at the end to a common length, never padded.

    No position attends to a later one, so that what fills a row changes nothing that is read. A
    row is at most twice as long as it was.
    """
    rows = sorted(
        (Row(answer.name, "token_ids", list(answer.fed)) for answer in answers),
        key=lambda row: len(row.ids),
        reverse=True,
    )
    alike: list[list[Row]] = []
    for row in rows:
        longest = len(alike[-1][0].ids) if alike else 0
        if 2 * len(row.ids) < longest or not alike:
            alike.append([])
        first = alike[-1][0] if alike[-1] else row
        alike[-1].append(row._replace(ids=cut_or_filled(row.ids, len(first.ids))))
    return tuple(batch_of(part) for group in alike for part in in_batches(group))


def compared_places(answer: Answer) -> tuple[Place, ...]:
    """Every position that is compared: those that the server tells of, else generated tokens."""
    generated = answer.generated_places or tuple(Place(token=each) for each in answer.generated)
    return answer.prompt_places + generated


def read_row(logits: Tensor, answer: Answer, *, num_top: int = NUM_TOP) -> Reading:
    """One run at the positions of an answer.

    Args:
        logits: ``(seq, vocab)`` of prompt and continuation, any dtype and device.
        answer: of the server.
        num_top: likeliest tokens to keep at each position.
    """
    places = compared_places(answer)
    first = 0 if answer.prompt_places else len(answer.prompt) - 1
    scores = logits[first : first + len(places)]
    width = max((len(place.ids) for place in places), default=0)
    told = torch.zeros((len(places), width), dtype=torch.long)
    is_told = torch.zeros((len(places), width), dtype=torch.bool)
    for row, place in enumerate(places):
        told[row, : len(place.ids)] = torch.tensor(place.ids, dtype=torch.long)
        is_told[row, : len(place.ids)] = True
    tokens = torch.tensor([place.token for place in places], dtype=torch.long)
    parts = list(_chunks(scores, tokens, told, is_told, num_top=num_top))
    columns = [np.concatenate([part[index] for part in parts]) for index in range(6)]
    at_told, at_token, rank, lowest, top, top_ids = columns
    return Reading(
        at_told=at_told,
        at_token=at_token,
        rank=rank.astype(np.int64),
        lowest=lowest,
        top=top,
        top_ids=top_ids.astype(np.int64),
    )


def _chunks(
    scores: Tensor, tokens: Tensor, told: Tensor, is_told: Tensor, *, num_top: int
) -> Iterator[tuple[NDArray[np.float64], ...]]:
    for start in range(0, len(tokens), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        values = scores[part].detach().cpu().double().log_softmax(dim=-1)
        at_token = values.gather(1, tokens[part].unsqueeze(1))
        at_told = values.gather(1, told[part]).masked_fill(~is_told[part], -torch.inf)
        top = values.topk(min(num_top, values.shape[-1]), dim=-1)
        yield (
            at_told.numpy(),
            at_token.squeeze(1).numpy(),
            (values > at_token).sum(dim=-1).numpy(),
            values.min(dim=-1).values.numpy(),
            top.values.numpy(),
            top.indices.numpy(),
        )
