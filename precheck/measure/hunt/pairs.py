"""Pairs of the tokens that alone made something larger than others did."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.measure.hunt.trial import Trial

BEST_OF_EACH = 3
"""Inputs of an operation whose tokens are paired with those of the same layer."""
MOST_IN_LAYER = 96
_SHORT = 4
"""Tokens: which of them matters is not known of longer inputs."""


def pairs_by_lane(trial: Trial) -> None:
    """For each product, the tokens that make both factors of a lane large, the tightest first."""
    for product in trial.aims():
        cores = []
        for first, second in trial.factors.pairs(product):
            cores += [(first, second), (second, first), (first, second, second)]
        trial.run_cores(dict.fromkeys(cores))


def pairs_by_layer(trial: Trial) -> None:
    """All ordered pairs of the best tokens of each layer, the tightest layer first."""
    for numbers in _by_layer(trial):
        tokens = _tokens(trial, numbers)
        trial.run_cores((first, second) for first in tokens for second in tokens)


def _by_layer(trial: Trial) -> Iterator[list[int]]:
    """Targets of each layer, in the order of the tightest among them."""
    targets = trial.evaluator.targets
    layers = dict.fromkeys(
        (targets[number].section, targets[number].layer) for number in trial.aims()
    )
    for layer in layers:
        yield [
            number
            for number, target in enumerate(targets)
            if (target.section, target.layer) == layer
        ]


def _tokens(trial: Trial, numbers: Sequence[int]) -> list[int]:
    """Those of the best short inputs, the best of each target first."""
    found: dict[int, None] = {}
    for place in range(BEST_OF_EACH):
        for number in numbers:
            short = [c.ids for c in trial.archive.texts[number] if len(c.ids) <= _SHORT]
            short += [c.ids for c in trial.archive.token_ids[number] if len(c.ids) <= _SHORT]
            for ids in short[place : place + 1]:
                found.update(dict.fromkeys(trial.space.core(ids) or ids))
    allowed = set(trial.space.tokens)
    return [token for token in found if token in allowed][:MOST_IN_LAYER]
