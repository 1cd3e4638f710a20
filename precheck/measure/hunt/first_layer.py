"""The first layer by enumeration: what no context changes, and the best pair of its scores.

**Idea.** Up to the first attention every position is computed from its own token, so that one
forward a token gives the largest value over all texts. The first scores are products of one query
and one key: the pair that could be largest is found by their norms, and a pair whose norms multiply
to less than a score that was found need not be tried. Which distance is best is tried with the
model's own positions.

**What it cannot see.** Positions that are learned: an operation that they reach is not called
exact. Scores to which something is added, as ALiBi is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.hunt.evaluator import in_steps
from precheck.measure.hunt.sweeps import filler
from precheck.measure.hunt.trial import BATCH_TOKENS
from precheck.records.mechanism import Mechanism

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from precheck.measure.hunt.trial import Trial

NUM_PAIRS = 8
"""Pairs of tokens that become texts, for each search."""
NUM_QUERIES = 64
"""Queries tried at every distance at once."""
MOST_ROUNDS = 64
_SCORES = frozenset({"aten.bmm", "aten.matmul"})


def first_layer(trial: Trial) -> None:
    """Every token in every operation before the first attention, and the best pair of scores."""
    numbers = context_free(trial)
    tokens = [*trial.space.tokens, *trial.space.others]
    if numbers:
        for batch in in_steps(
            [trial.space.wrapped((t,)) for t in tokens], most_tokens=BATCH_TOKENS
        ):
            trial.check()
            trial.add(batch, trial.evaluator.values(batch, wanted=numbers))
        trial.exact.update(numbers)
    number = _scores(trial)
    if number is not None and "position_ids" in trial.evaluator.skeleton.accepts:
        _best_scores(trial, number)


def context_free(trial: Trial) -> list[int]:
    """Numbers of targets whose value for two tokens is the larger of those for one, in any order.

    Only those of the first layer, and before it, are looked at.
    """
    evaluator = trial.evaluator
    early = [n for n, target in enumerate(evaluator.targets) if target.layer in {None, 0}]
    generator = trial.generator("first layer")
    drawn = torch.randint(len(trial.space.tokens), (8, 4), generator=generator)
    rows = torch.tensor(trial.space.tokens)[drawn]
    singles = torch.stack([evaluator.values(column.unsqueeze(1)) for column in rows.T])
    expected, together = singles.amax(dim=0), evaluator.values(rows)
    backwards = evaluator.values(rows.flip(1))
    return [
        number
        for number in early
        if number not in evaluator.mixed
        and bool(expected[:, number].any())
        and all(
            torch.allclose(values[:, number], expected[:, number], rtol=1e-4)
            for values in (together, backwards)
        )
    ]


def _scores(trial: Trial) -> int | None:
    """The number of the product that makes the first layer's scores."""
    for number, target in enumerate(trial.evaluator.targets):
        is_score = target.mechanism is Mechanism.ATTENTION_SCORES and target.op in _SCORES
        if target.layer == 0 and is_score and trial.is_aim(target):
            return number
    return None


class Best(NamedTuple):
    """A score and what gives it."""

    score: float
    query: int
    key: int
    distance: int


def _best_scores(trial: Trial, number: int) -> None:
    """Tries the pairs with the largest norms at every distance, until no other can be larger."""
    tokens = torch.tensor(trial.space.tokens)
    queries, keys = _operands(trial, number, tokens)
    of_queries, of_keys = queries.norm(dim=-1), keys.norm(dim=-1)  # (tokens, heads)
    most = of_keys.amax(dim=0)
    order = (of_queries * most).amax(dim=1).argsort(descending=True)
    best: list[Best] = []
    for start in range(0, min(len(order), MOST_ROUNDS * NUM_QUERIES), NUM_QUERIES):
        trial.check()
        chosen = order[start : start + NUM_QUERIES]
        possible = float((of_queries[chosen] * most).max())
        if best and possible <= best[0].score:
            break  # the queries that are left are shorter still
        found = list(_at_distances(trial, number, tokens[chosen], keys, of_keys))
        best = sorted([*best, *found], reverse=True)[:NUM_PAIRS]
    other = filler(trial)
    trial.run_cores(
        [int(tokens[pair.key]), *[other] * (pair.distance - 1), pair.query]
        if pair.distance
        else [pair.query]
        for pair in best
    )


def _at_distances(
    trial: Trial, number: int, tokens: Tensor, keys: Tensor, of_keys: Tensor
) -> Iterator[Best]:
    """For each query the best key and distance: keys are where positions begin."""
    longest = trial.longest_pair
    step = max(1, BATCH_TOKENS // len(tokens))
    chosen = of_keys.topk(min(NUM_QUERIES, len(of_keys)), dim=0).indices.flatten().unique()
    near = keys[chosen]
    for start in range(0, longest, step):
        trial.check()
        distances = torch.arange(start, min(start + step, longest))
        rows = tokens.repeat_interleave(len(distances)).unsqueeze(1)
        positions = distances.repeat(len(tokens)).unsqueeze(1)
        queries, _ = _run(trial, number, rows, positions)
        scores = torch.einsum("qhd,khd->qkh", queries, near).abs().amax(dim=2)
        score, key = scores.reshape(len(tokens), -1).max(dim=1)
        for query in range(len(tokens)):
            distance, place = divmod(int(key[query]), len(chosen))
            yield Best(
                float(score[query]),
                int(tokens[query]),
                int(chosen[place]),
                int(distances[distance]),
            )


def _operands(trial: Trial, number: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys of tokens at the first position, ``(tokens, heads, head_dim)`` each."""
    found = []
    for part in tokens.split(BATCH_TOKENS):
        trial.check()
        rows = part.unsqueeze(1)
        found.append(_run(trial, number, rows, torch.zeros_like(rows)))
    queries, keys = zip(*found, strict=True)
    return torch.cat(queries), torch.cat(keys)


def _run(trial: Trial, number: int, rows: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    query, key = trial.evaluator.operands(rows, number, positions)
    heads, width = query.numel() // (len(rows) * query.shape[-1]), query.shape[-1]
    return query.reshape(len(rows), heads, width), key.reshape(len(rows), heads, width)
