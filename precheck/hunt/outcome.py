"""What a search found, as a record."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.measure.hunt.search import PARTS
from precheck.records.outcomes.hunt import LARGEST_VALUE, Hunt, HuntRow, HuntStatus, WorstPrompt
from precheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from precheck.hunt.request import HuntRequest
    from precheck.measure.hunt.archive import Catch
    from precheck.measure.hunt.targets import Target
    from precheck.measure.hunt.trial import Trial
    from precheck.records.outcomes.hunt import Picture

_Key = tuple[tuple[int, ...], "Picture | None"]

MOST_PROMPTS = 16
"""Saved and run: one for each mechanism and layer, the least headroom first."""


def outcome(trial: Trial, request: HuntRequest, *, model: str, done: Collection[str]) -> Hunt:
    """The record of a search, before its prompts were run; all operations are open in it."""
    catches: dict[_Key, Catch] = {}
    rows = []
    for number in _largest_of_each(trial):
        best = _best(trial, number)
        is_better = best is not None and best.value > _target(trial, number).probes_abs_max
        if best is not None and is_better and len(catches) < MOST_PROMPTS:
            catches.setdefault(_key(best), best)
        rows.append(_row(trial, number, best, tuple(catches)))
    work = trial.evaluator.work
    return Hunt(
        precheck_version=__version__,
        model=model,
        dtype=request.dtype,
        attn_implementation=trial.evaluator.skeleton.attn_implementation,
        seed=request.seed,
        seconds=trial.budget.spent,
        num_forwards=work.num_forwards,
        num_inputs=work.num_inputs,
        num_tokens=work.num_tokens,
        longest_tokens=work.longest,
        parts_left=tuple(name for name in PARTS if name not in done),
        has_tokenizer=trial.space.has_text,
        rows=tuple(rows),
        prompts=tuple(
            WorstPrompt(
                token_ids=catch.ids,
                text=catch.text,
                found_by=catch.found_by,
                picture=catch.picture,
            )
            for catch in catches.values()
        ),
        runs=(),
    )


def _largest_of_each(trial: Trial) -> Iterator[int]:
    """Numbers of the operations that are the largest of their mechanism in their layer."""
    values = trial.archive.values(any_ids=not trial.space.has_text)
    seen = set()
    for number, target in enumerate(trial.evaluator.targets):
        values[number] = max(values[number], target.probes_abs_max)
    for number in sorted(range(len(values)), key=lambda number: -values[number]):
        target = trial.evaluator.targets[number]
        kind = (target.section, target.layer, target.mechanism)
        if trial.is_aim(target) and values[number] and kind not in seen:
            seen.add(kind)
            yield number


def _target(trial: Trial, number: int) -> Target:
    return trial.evaluator.targets[number]


def _best(trial: Trial, number: int) -> Catch | None:
    return trial.archive.best(number, any_ids=not trial.space.has_text)


def _key(catch: Catch) -> _Key:
    """What makes an input another one."""
    return (catch.ids, catch.picture)


def _row(trial: Trial, number: int, best: Catch | None, prompts: tuple[_Key, ...]) -> HuntRow:
    target = _target(trial, number)
    found = 0.0 if best is None else min(best.value, LARGEST_VALUE)
    any_ids = trial.archive.best(number, any_ids=True)
    of_ids = None
    if any_ids is not None and any_ids.value > found:
        of_ids = min(any_ids.value, LARGEST_VALUE)
    return HuntRow(
        module=target.module,
        layer=target.layer,
        section=target.section,
        op=target.op,
        source=target.source,
        mechanism=target.mechanism,
        probes_abs_max=target.probes_abs_max,
        found_abs_max=max(found, target.probes_abs_max),
        ids_abs_max=of_ids,
        limit=trial.limit,
        prompt=prompts.index(_key(best))
        if best is not None and _key(best) in prompts and found > target.probes_abs_max
        else None,
        status=HuntStatus.OPEN,
        is_exact=number in trial.exact,
    )
