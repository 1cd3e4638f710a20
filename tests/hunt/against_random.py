"""What a search is compared with: random inputs, in as many forwards."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.source import open_checkpoint
from precheck.hunt.check import check
from precheck.hunt.hunt import likely_tokens, longest_input, trial_of
from precheck.hunt.outcome import outcome
from precheck.hunt.scans import scanned
from precheck.measure.hunt.archive import Archive
from precheck.measure.hunt.budget import Budget, SearchOverError
from precheck.measure.hunt.evaluator import Work
from precheck.measure.hunt.images import MOST_PIXELS, SIDES
from precheck.measure.hunt.search import search
from precheck.measure.hunt.sweeps import filler
from precheck.measure.hunt.targets import TargetWitness
from precheck.measure.hunt.trial import BATCH_TOKENS
from precheck.measure.probes.builtin import BUILTIN, LONG, PADDED
from precheck.measure.probes.context import CONTEXT, MOST_TOKENS
from precheck.measure.probes.media import IMAGES
from precheck.measure.probes.rows import cut_or_filled
from precheck.measure.subject.subject import CheckpointSubject
from precheck.records.outcomes.hunt import Picture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.hunt.request import HuntRequest
    from precheck.measure.hunt.trial import Trial
    from precheck.records.outcomes.hunt import Hunt, HuntRow
    from precheck.records.progress import Announcement, Step

CORES = 2
"""Whose time a search may use: processor seconds, for each second of its minutes."""


def random_search(trial: Trial, *, num_forwards: int) -> None:
    """What a search is compared with: texts of random tokens, of random lengths.

    Each forward is as large as any of a search. Where the model takes images, every second one is
    an image of random size and contrast, with noise.
    """
    generator = trial.generator("random search")
    tokens = trial.space.tokens
    work = trial.evaluator.work
    with suppress(SearchOverError), trial.within("random inputs", share=1.0):
        while work.num_forwards < num_forwards:
            if trial.pictures is not None and work.num_forwards % 2:
                trial.run_picture(_random_picture(generator))
                continue
            length = int(torch.randint(1, 65, (1,), generator=generator))
            shape = (BATCH_TOKENS // len(trial.space.wrapped(range(length))), length)
            drawn = torch.randint(len(tokens), shape, generator=generator)
            trial.run_cores([tokens[index] for index in row] for row in drawn.tolist())


def _random_picture(generator: torch.Generator) -> Picture:
    smallest, largest = SIDES[0], SIDES[-1]
    width = height = largest
    while width * height > MOST_PIXELS:
        shares = torch.rand(5, generator=generator).tolist()
        width, height = (int(smallest * (largest / smallest) ** share) for share in shares[:2])
    return Picture(
        width=width,
        height=height,
        contrast=shares[2],
        brightness=2.0 * shares[3] - 1.0,
        noise=shares[4],
        seed=int(torch.randint(1 << 30, (1,), generator=generator)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A search, and the largest values that random inputs gave."""

    found: Hunt
    seconds: float
    """Of one processor, in the search."""
    probes: tuple[float, ...]
    """For each row of the search, what the built-in probes gave: all of them."""
    by_chance: tuple[float, ...]
    """For each row of the search."""


def compared(folder: Path, request: HuntRequest, *, is_even: bool = False) -> Compared:
    """Searches a model, runs what is found, and as many forwards of random inputs.

    Args:
        folder: the model.
        request: of the search.
        is_even: random inputs end when they have had the processor time of the search, too: most
            of its forwards end in the layer that is searched.
    """
    subject = CheckpointSubject(open_checkpoint(str(folder), observe=ignore))
    witness = TargetWitness(request.dtype)
    before = scanned(subject, request, witness=witness, prompts=None, observe=ignore)
    with trial_of(subject, request, witness, observe=ignore) as trial:
        trial.evaluator.work = Work()
        trial.budget = Budget(seconds=60.0 * request.minutes * CORES, clock=time.process_time)
        search(
            trial,
            probes=list(witness.inputs),
            likely=likely_tokens(trial, subject),
            longest=longest_input(trial),
            done=set(),
        )
        seconds = trial.budget.spent
        found = outcome(trial, request, model=subject.name, done=set())
    found = check(found, before, subject, request, observe=ignore)
    with trial_of(subject, replace(request, minutes=600.0), witness, observe=ignore) as trial:
        trial.evaluator.work = Work()
        if is_even:
            trial.budget = Budget(seconds=seconds, clock=time.process_time)
        random_search(trial, num_forwards=found.num_forwards)
        by_chance = tuple(_largest_in(trial, row) for row in found.rows)
        trial.archive = Archive(trial.archive.num_targets)
        trial.budget = Budget(seconds=math.inf)
        if request.is_quick:  # the scan ran some only
            _builtin_probes(trial, likely_tokens(trial, subject))
        probes = tuple(max(row.probes_abs_max, _largest_in(trial, row)) for row in found.rows)
    return Compared(found=found, seconds=seconds, probes=probes, by_chance=by_chance)


def _builtin_probes(trial: Trial, likely: Sequence[int]) -> None:
    """All built-in texts and images, and texts that begin with odd tokens."""
    texts = [trial.space.encoded(prompt.text) for prompt in (*BUILTIN, *PADDED, LONG)]
    longest = min(MOST_TOKENS, trial.space.max_context or MOST_TOKENS)
    whole = trial.space.vocabulary.encode(CONTEXT) or []
    texts.append(tuple(cut_or_filled(whole, longest, ending=trial.space.after)))
    starts = [trial.space.wrapped((token, filler(trial))) for token in likely]
    with suppress(SearchOverError):
        trial.run([ids for ids in (*texts, *starts) if ids])
        for probe in IMAGES:
            trial.run_picture(Picture(width=probe.width, height=probe.height))


def _largest_in(trial: Trial, row: HuntRow) -> float:
    """The largest value of the row's mechanism in its layer."""
    return max(
        value
        for target, value in zip(trial.evaluator.targets, trial.archive.values(), strict=True)
        if (target.section, target.layer, target.mechanism)
        == (row.section, row.layer, row.mechanism)
    )


def ignore(_event: Announcement | Step) -> None:
    """Observe nothing."""
