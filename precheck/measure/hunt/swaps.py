"""Swaps of tokens that a gradient suggests, from the best inputs so far and from new ones.

**Idea.** The gradient of an operation's largest value with respect to the embedding of a position
says, to first order, which other token there would make it larger
(https://arxiv.org/abs/2307.15043). Some of those are tried, and the best input goes on. The largest
value is often not that of the lane that could become largest, so every second round follows a lane
with a large bound instead.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from precheck.measure.hunt.text_space import Ids
    from precheck.measure.hunt.trial import Trial

NUM_PARENTS = 8
NUM_CHILDREN = 32
"""Of each parent and round."""
NUM_SUGGESTED = 64
"""Tokens that the gradient suggests for a position."""
NUM_FRESH = 2
"""Parents of a round that are drawn anew."""
LONGEST_PARENT = 48
NUM_AIMS = 6
"""Operations with the least headroom, between which rounds alternate."""


def swaps(trial: Trial, *, rounds: int | None = None) -> None:
    """Rounds of swaps until the budget is used.

    Args:
        trial: the search.
        rounds: how many; None: until the budget ends them.
    """
    allowed = torch.tensor(trial.space.tokens, dtype=torch.long)
    end = None if rounds is None else trial.num_rounds + rounds
    while end is None or trial.num_rounds < end:
        count = trial.num_rounds
        trial.num_rounds += 1
        aims = _aims(trial)
        if not aims:
            return
        number = aims[count % len(aims)]
        generator = trial.generator(f"swaps {count}")
        lane = _lane(trial, number, generator) if count % 2 else None
        for parents in _by_length(_parents(trial, number, generator)):
            trial.check()
            slopes = trial.evaluator.slopes(parents, number, lane)
            trial.run(_children(trial, parents, slopes, allowed, generator))


def _aims(trial: Trial) -> list[int]:
    """The targets with the least headroom, of each mechanism one before any has two."""
    seen: dict[str, int] = {}
    ranked = []
    for place, number in enumerate(trial.aims()):
        mechanism = trial.evaluator.targets[number].mechanism
        seen[mechanism] = seen.get(mechanism, 0) + 1
        ranked.append((seen[mechanism], place, number))
    return [number for _, _, number in sorted(ranked)[:NUM_AIMS]]


def _lane(trial: Trial, number: int, generator: torch.Generator) -> int | None:
    lanes = trial.factors.lanes(number)
    if not lanes:
        return None
    choice = int(torch.randint(min(len(lanes), 16), (1,), generator=generator))
    return lanes[choice]


def _parents(trial: Trial, number: int, generator: torch.Generator) -> list[Ids]:
    best = [catch.ids for catch in trial.archive.texts[number]]
    best += [] if trial.space.has_text else [catch.ids for catch in trial.archive.token_ids[number]]
    parents = [ids for ids in best if len(ids) <= LONGEST_PARENT][: NUM_PARENTS - NUM_FRESH]
    others = trial.archive.elites(trial.aims()[: 4 * NUM_AIMS])
    for _ in range(NUM_PARENTS - len(parents)):
        length = int(torch.randint(2, 13, (1,), generator=generator))
        if others and int(torch.randint(2, (1,), generator=generator)):
            ids = others[int(torch.randint(len(others), (1,), generator=generator))]
            if len(ids) <= LONGEST_PARENT:
                parents.append(ids)
                continue
        drawn = torch.randint(len(trial.space.tokens), (length,), generator=generator).tolist()
        parents.append(trial.space.wrapped([trial.space.tokens[index] for index in drawn]))
    return list(dict.fromkeys(parents))


def _by_length(inputs: list[Ids]) -> Iterator[Tensor]:
    by_length: dict[int, list[Ids]] = {}
    for ids in inputs:
        by_length.setdefault(len(ids), []).append(ids)
    for rows in by_length.values():
        yield torch.tensor(rows, dtype=torch.long)


def _children(
    trial: Trial,
    parents: Tensor,
    slopes: Tensor | None,
    allowed: Tensor,
    generator: torch.Generator,
) -> list[Ids]:
    """Parents with one token changed, or with one more, fewer, or more often."""
    children: list[Ids] = []
    for row, ids in enumerate(parents.tolist()):
        core = trial.space.core(ids)
        if not core:
            continue
        start = len(trial.space.before)
        suggested = None
        if slopes is not None:
            suggested = _suggested(trial, slopes[row, start : start + len(core)], allowed)
        for _ in range(NUM_CHILDREN):
            child = _changed(core, suggested, allowed, generator)
            children.append(child)
    texts = trial.space.texts(children)
    if trial.space.has_text:
        children = [child for child, text in zip(children, texts, strict=True) if text]
    return [trial.space.wrapped(child) for child in dict.fromkeys(children)]


def _suggested(trial: Trial, slopes: Tensor, allowed: Tensor) -> Tensor | None:
    """For each position the tokens whose embedding points where the slope does, ``(seq, k)``."""
    weight = getattr(trial.evaluator.embedding, "weight", None)
    if weight is None or weight.shape[-1] != slopes.shape[-1]:
        return None
    scores = (slopes.float() @ weight.detach().float().T)[:, allowed.to(weight.device)]
    return allowed[scores.topk(min(NUM_SUGGESTED, len(allowed)), dim=1).indices.cpu()]


def _changed(
    core: Ids, suggested: Tensor | None, allowed: Tensor, generator: torch.Generator
) -> Ids:
    position, kind, pick = (
        int(torch.randint(most, (1,), generator=generator)) for most in (len(core), 10, 1 << 30)
    )
    token = int(allowed[pick % len(allowed)])
    if suggested is not None and kind < 9:  # noqa: PLR2004  one in ten is any token
        token = int(suggested[position, pick % suggested.shape[1]])
    if kind == 0 and len(core) > 1:
        return core[:position] + core[position + 1 :]
    if kind == 1:
        return (*core[:position], token, *core[position:])
    if kind == 2:  # noqa: PLR2004
        return (*core[:position], *core)[: 2 * LONGEST_PARENT]
    if kind == 3:  # noqa: PLR2004
        return (core[position], *core[:position], *core[position + 1 :])
    return (*core[:position], token, *core[position + 1 :])
