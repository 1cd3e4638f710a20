"""A search as text, to go on from later: what it has found, and which of its parts are over."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from precheck.errors import UsageError
from precheck.measure.hunt.archive import Catch
from precheck.records.outcomes.hunt import LARGEST_VALUE, Picture

if TYPE_CHECKING:
    from collections.abc import Collection

    from precheck.measure.hunt.trial import Trial

SEARCH_SCHEMA = "precheck-search/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedCatch:
    """An input, and the operation that it made large."""

    target: tuple[str, str, int]
    value: float
    token_ids: tuple[int, ...]
    text: str | None
    found_by: str
    picture: Picture | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSearch:
    """Everything that a search has to know to go on."""

    schema: str = SEARCH_SCHEMA
    model: str
    seed: int
    seconds: float
    num_forwards: int
    num_inputs: int
    num_tokens: int
    longest: int
    parts_done: tuple[str, ...]
    positions: dict[str, int]
    num_rounds: int
    catches: tuple[SavedCatch, ...]


def saved(trial: Trial, *, model: str, done: Collection[str]) -> str:
    """The search as JSON text.

    Args:
        trial: the search.
        model: whose it is.
        done: names of its parts that are over.
    """
    work, archive = trial.evaluator.work, trial.archive
    catches = [
        SavedCatch(
            target=trial.evaluator.targets[number].key,
            value=min(catch.value, LARGEST_VALUE),
            token_ids=catch.ids,
            text=catch.text,
            found_by=catch.found_by,
            picture=catch.picture,
        )
        for number in range(archive.num_targets)
        for catch in (
            *archive.texts[number],
            *archive.token_ids[number],
            *archive.images[number],
        )
    ]
    search = SavedSearch(
        model=model,
        seed=trial.seed,
        seconds=trial.budget.spent,
        num_forwards=work.num_forwards,
        num_inputs=work.num_inputs,
        num_tokens=work.num_tokens,
        longest=work.longest,
        parts_done=tuple(sorted(done)),
        positions=trial.positions,
        num_rounds=trial.num_rounds,
        catches=tuple(catches),
    )
    return json.dumps(msgspec.to_builtins(search), allow_nan=False)


def restore(trial: Trial, plain: dict[str, Any] | None, *, model: str) -> set[str]:
    """Goes on from a saved search; returns the names of the parts that are over.

    Args:
        trial: a search that has just begun.
        plain: what ``saved`` wrote, read back; None for a new search.
        model: whose search it has to be.

    Raises:
        UsageError: it is no search, or one of another model or seed.
    """
    if plain is None:
        return set()
    try:
        search = msgspec.convert(plain, SavedSearch)
    except (msgspec.ValidationError, ValueError) as error:
        raise UsageError(f"not a saved search: {error}", hint="choose another file") from error
    if (search.schema, search.model, search.seed) != (SEARCH_SCHEMA, model, trial.seed):
        raise UsageError(
            f"the search is one of {search.model!r} with seed {search.seed} ({search.schema})",
            hint="choose another file, or the same model and seed",
        )
    numbers = {target.key: number for number, target in enumerate(trial.evaluator.targets)}
    for catch in search.catches:
        number, ids = numbers.get(catch.target), tuple(catch.token_ids)
        if number is not None and trial.space.vocabulary.has_all(ids):
            has_picture = catch.picture is not None
            trial.archive.add(
                number,
                Catch(
                    value=catch.value,
                    ids=ids,
                    text=catch.text if has_picture else trial.space.text_of(ids),
                    found_by=catch.found_by,
                    picture=catch.picture,
                ),
            )
    work = trial.evaluator.work
    work.num_forwards, work.num_inputs = search.num_forwards, search.num_inputs
    work.num_tokens, work.longest = search.num_tokens, search.longest
    trial.num_rounds, trial.positions = search.num_rounds, dict(search.positions)
    trial.budget.tokens_before = search.num_tokens
    trial.budget.seconds_before = search.seconds
    return set(search.parts_done)
