"""The worst prompts of trained models: ``python -m tests.real.hunts FOLDER``, for docs/hunt.md.

A place is a mechanism in a layer. It is open where a certificate of the run in float16 with eager
attention does not prove it, and no built-in probe makes it overflow.
"""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from precheck.hunt.request import HuntRequest
from precheck.pipeline import scan
from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.outcomes.hunt import HuntStatus
from precheck.records.outcomes.intervals import intervals_of
from precheck.records.precision import Dtype
from tests.hunt.against_random import compared
from tests.real.fetch import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MINUTES = 2.0
"""Of two cores, for each model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """An open mechanism in a layer, and the largest values of three searches."""

    mechanism: str
    layer: int | None
    limit: float
    probes: float
    found: float
    """By the search, of prompts that are texts."""
    by_chance: float
    """By random texts in as many forwards, or as much time."""
    is_refuted: bool
    """A text that was found overflows in the real run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A model, and its open places."""

    name: str
    num_proved: int
    """Places that are left out because no prompt can make them overflow."""
    num_forwards: int
    num_inputs: int
    seconds: float
    """Of one processor, in the search."""
    places: tuple[Place, ...]

    def better(self, than: str) -> int:
        """Open places where the search found a larger value than ``probes`` or ``by_chance``."""
        return sum(place.found > getattr(place, than) for place in self.places)


def searched(folder: Path, *, minutes: float = MINUTES) -> Searched:
    """Searches a model, once with the seed 0."""
    proved = _proved(folder)
    both = compared(folder, HuntRequest(minutes=minutes, is_quick=True), is_even=True)
    places, num_proved = [], 0
    for row, probes, by_chance in zip(both.found.rows, both.probes, both.by_chance, strict=True):
        if (row.mechanism, row.section, row.layer) in proved:
            num_proved += 1
        elif probes <= row.limit:
            is_refuted = row.status is HuntStatus.REFUTED and row.prompt is not None
            places.append(
                Place(
                    mechanism=row.mechanism,
                    layer=row.layer,
                    limit=row.limit,
                    probes=probes,
                    found=max(probes, row.found_abs_max),
                    by_chance=by_chance,
                    is_refuted=is_refuted,
                )
            )
    return Searched(
        name=folder.name,
        num_proved=num_proved,
        num_forwards=both.found.num_forwards,
        num_inputs=both.found.num_inputs,
        seconds=both.seconds,
        places=tuple(places),
    )


def _proved(folder: Path) -> set[tuple[str, str, int | None]]:
    """Mechanism, section and layer of what no prompt can make overflow."""
    report = scan(
        str(folder),
        dtypes=["float16"],
        attn_implementations=["eager"],
        prove=True,
        quick=True,
    )
    (run,) = (run for run in report.runs if run.dtype is Dtype.FLOAT16)
    return {
        (interval.row.mechanism, interval.row.section, interval.row.layer)
        for mechanism in intervals_of(report.headroom, run.configuration)
        for interval in mechanism.intervals
        if interval.status is ProofStatus.PROVED
    }


def lines(results: Iterable[Searched]) -> Iterator[str]:
    """The table in Markdown, a row for each mechanism of a model."""
    yield "| model | mechanism | open layers | above probes | above random | largest ratio |"
    yield "|---|---|---:|---:|---:|---:|"
    for result in results:
        by_mechanism: dict[str, list[Place]] = defaultdict(list)
        for place in result.places:
            by_mechanism[place.mechanism].append(place)
        for mechanism, places in by_mechanism.items():
            above, by_chance = (
                sum(place.found > getattr(place, than) for place in places)
                for than in ("probes", "by_chance")
            )
            ratio = max(place.found / place.probes for place in places if place.probes)
            yield (
                f"| {result.name} | {mechanism.replace('_', ' ')} | {len(places)} | {above} | "
                f"{by_chance} | {ratio:.2f} |"
            )
        num = len(result.places)
        yield (
            f"| {result.name} | all: {result.num_forwards:,} forwards, {result.num_inputs:,} "
            f"inputs, {result.seconds:.0f} s; {result.num_proved} places proved | {num} | "
            f"{result.better('probes')} | {result.better('by_chance')} | |"
        )


def main() -> None:
    """Prints a table for each model as soon as it is searched."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, *names = sys.argv[1:]
    for name in names or NAMES:
        for line in lines([searched(Path(folder) / name)]):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
