"""Searches planted models for the input that breaks them, and random texts as many tokens long.

``make hunts`` prints a table with a row for each. The seeds below were not used while the search
was written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.source import open_checkpoint
from precheck.hunt.check import check
from precheck.hunt.hunt import likely_tokens, longest_input, trial_of
from precheck.hunt.outcome import outcome
from precheck.hunt.request import HuntRequest
from precheck.hunt.scans import scanned
from precheck.measure.hunt.archive import Archive
from precheck.measure.hunt.search import search
from precheck.measure.hunt.sweeps import filler
from precheck.measure.hunt.targets import TargetWitness
from precheck.measure.hunt.trial import Budget, SearchOverError
from precheck.measure.probes.builtin import BUILTIN, LONG
from precheck.measure.subject.subject import CheckpointSubject
from precheck.records.outcomes.hunt import HuntStatus
from precheck.render.parts.words import DASH
from tests.hunt.plants import Kind, Plant, build

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.measure.hunt.trial import Trial
    from precheck.records.outcomes.hunt import Hunt
    from precheck.records.progress import Announcement, Step

_FIRST_SEED = 7_000
PLANTS = tuple(
    Plant(kind=kind, architecture=architecture, seed=_FIRST_SEED + number)
    for number, (kind, architecture) in enumerate(
        [
            (Kind.FIRST, "Llama"),
            (Kind.FIRST, "Mistral"),
            (Kind.FIRST, "Qwen3"),
            (Kind.FIRST, "Granite"),
            (Kind.FIRST, "StableLm"),
            (Kind.FIRST, "Helium"),
            (Kind.PAIR, "Qwen2"),
            (Kind.PAIR, "Olmo2"),
            (Kind.PAIR, "Gemma3Text"),
            (Kind.PAIR, "SmolLM3"),
            (Kind.PAIR, "Llama"),
            (Kind.PAIR, "Granite"),
            (Kind.REPEATED, "Mistral"),
            (Kind.REPEATED, "Gemma"),
            (Kind.REPEATED, "Qwen2"),
            (Kind.REPEATED, "Helium"),
            (Kind.LENGTH, "GPT2"),
            (Kind.LENGTH, "OPT"),
            (Kind.LENGTH, "GPT2"),
            (Kind.LENGTH, "OPT"),
        ]
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What the two searches did with a planted model."""

    plant: Plant
    probes: float
    """The largest value of the planted operation that the built-in probes gave."""
    found: Hunt
    seconds: float
    """Of one processor, in the search."""
    is_found: bool
    """A text makes it overflow in the real run."""
    by_chance: bool
    """Random texts of as many tokens do too."""


def random_search(trial: Trial) -> None:
    """What a search is compared with: texts of random tokens, of random lengths."""
    generator = trial.generator("random search")
    tokens = trial.space.tokens
    try:
        with trial.within("random texts", share=1.0):
            while True:
                length = int(torch.randint(1, 65, (1,), generator=generator))
                drawn = torch.randint(len(tokens), (64, length), generator=generator)
                trial.run_cores([tokens[index] for index in row] for row in drawn.tolist())
    except SearchOverError:
        return


def surveyed(plant: Plant, folder: Path, *, minutes: float) -> Result:
    """Builds a model and searches it twice."""
    build(plant, folder)
    subject = CheckpointSubject(open_checkpoint(str(folder), observe=_ignore))
    request = HuntRequest(minutes=minutes, ends_at_first=True, is_quick=True, seed=plant.seed)
    witness = TargetWitness(request.dtype)
    before = scanned(subject, request, witness=witness, prompts=None, observe=_ignore)
    with trial_of(subject, request, witness, observe=_ignore) as trial:
        likely = likely_tokens(trial, subject)
        probes = _of_probes(trial, likely)
        # of this process: what else the machine does is no matter
        trial.budget = Budget(seconds=60.0 * minutes, clock=time.process_time)
        search(
            trial,
            probes=list(witness.inputs),
            likely=likely,
            longest=longest_input(trial),
            done=set(),
        )
        seconds = trial.budget.spent
        found = outcome(trial, request, model=str(folder), done=set())
    found = check(found, before, subject, request, observe=_ignore)
    chance = replace(request, most_tokens=found.num_tokens, minutes=60.0)
    with trial_of(subject, chance, witness, observe=_ignore) as trial:
        random_search(trial)
        by_chance = _exceeds(trial)
    return Result(
        plant=plant,
        probes=probes,
        found=found,
        seconds=seconds,
        is_found=any(
            row.status is HuntStatus.REFUTED
            and row.prompt is not None
            and found.prompts[row.prompt].text is not None
            for row in found.rows
        ),
        by_chance=by_chance,
    )


def _of_probes(trial: Trial, likely: Sequence[int]) -> float:
    """The largest value that all built-in texts give, and texts that begin with odd tokens."""
    texts = [trial.space.encoded(prompt.text) for prompt in (*BUILTIN, LONG)]
    starts = [trial.space.wrapped((token, filler(trial))) for token in likely]
    with suppress(SearchOverError):
        trial.run([ids for ids in (*texts, *starts) if ids])
    largest = max(trial.archive.values())
    trial.archive = Archive(trial.archive.num_targets)
    return largest


def _exceeds(trial: Trial) -> bool:
    return max(trial.archive.values()) > trial.limit


def _ignore(_event: Announcement | Step) -> None:
    """Observe nothing."""


def lines(results: list[Result]) -> Iterator[str]:
    """The table in Markdown."""
    yield (
        "| breaks at | architecture | seed | built-in probes | found | by | inputs | tokens | "
        "processor s | random |"
    )
    yield "|---|---|---:|---:|---:|---|---:|---:|---:|---|"
    yield from map(_line, results)
    num_found, by_chance = (
        sum(getattr(result, name) for result in results) for name in ("is_found", "by_chance")
    )
    yield ""
    yield (
        f"Found in {num_found} of {len(results)} models; random texts of as many tokens break "
        f"{by_chance}."
    )


def _line(result: Result) -> str:
    plant, found = result.plant, result.found
    worst = max(found.rows, key=lambda row: row.found_abs_max)
    by = DASH
    if result.is_found:
        row = next(row for row in found.rows if row.status is HuntStatus.REFUTED)
        by = DASH if row.prompt is None else found.prompts[row.prompt].found_by
    return (
        f"| {plant.kind} | {plant.architecture} | {plant.seed} | {result.probes:,.0f} | "
        f"{f'{worst.found_abs_max:,.0f}' if result.is_found else 'no'} | {by} | "
        f"{found.num_inputs:,} | {found.num_tokens:,} | {result.seconds:.0f} | "
        f"{'yes' if result.by_chance else 'no'} |"
    )


def main() -> None:
    """Runs the survey, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each search")
    parser.add_argument("--only", help="kind or architecture")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = []
    for plant in PLANTS:
        if options.only not in {None, plant.kind.name.lower(), plant.architecture}:
            continue
        plant = replace(plant, seed=plant.seed + options.shift)  # noqa: PLW2901
        with tempfile.TemporaryDirectory() as folder:
            results.append(surveyed(plant, Path(folder), minutes=options.minutes))
        sys.stderr.write(f"{_line(results[-1])}\n")
    sys.stdout.write("".join(f"{line}\n" for line in lines(results)))


if __name__ == "__main__":
    main()
