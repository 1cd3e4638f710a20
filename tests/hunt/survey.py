"""Searches planted models for the input that breaks them, and random texts as many tokens long.

``make hunts`` prints a table with a row for each. A row is kept as soon as it is measured, and a
survey that was broken off goes on from there. The seeds below were not used while the search was
written.

The budget of a search is that of five minutes on two cores, counted in processor seconds of this
process: what else the machine does changes no row.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from precheck.hunt.request import HuntRequest
from precheck.records.outcomes.hunt import HuntStatus
from precheck.render.parts.words import DASH
from tests.hunt.against_random import compared
from tests.hunt.plants import LIMIT, Kind, Plant, build

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.hunt import Hunt

_FIRST_SEED = 31_000
PLANTS = tuple(
    Plant(kind=kind, architecture=architecture, seed=_FIRST_SEED + number)
    for number, (kind, architecture) in enumerate(
        [
            (Kind.PAIR, "Qwen2"),
            (Kind.FIRST, "Llama"),
            (Kind.REPEATED, "Mistral"),
            (Kind.PAIR, "Olmo2"),
            (Kind.FIRST, "Mistral"),
            (Kind.REPEATED, "Gemma"),
            (Kind.PAIR, "Gemma3Text"),
            (Kind.FIRST, "Qwen3"),
            (Kind.REPEATED, "Qwen2"),
            (Kind.PAIR, "SmolLM3"),
            (Kind.FIRST, "Granite"),
            (Kind.REPEATED, "Helium"),
            (Kind.PAIR, "Llama"),
            (Kind.FIRST, "StableLm"),
            (Kind.PAIR, "Granite"),
            (Kind.IMAGE, "Qwen2VL"),
            (Kind.LENGTH, "GPT2"),
            (Kind.IMAGE, "Qwen2_5_VL"),
            (Kind.LENGTH, "OPT"),
            (Kind.LENGTH, "GPT2"),
        ]
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What the two searches did with a planted model."""

    kind: str
    architecture: str
    seed: int
    minutes: float
    probes: float
    """The largest value in the search's targets that the built-in probes gave."""
    largest: float
    """The same, of the search."""
    found_by: str | None
    """Part of the search; None where no text that was found overflows in the real run."""
    num_forwards: int
    num_inputs: int
    num_tokens: int
    seconds: float
    """Of one processor, in the search."""
    by_chance: float
    """The largest value that random texts gave, in as many forwards and with as many tokens."""

    @property
    def key(self) -> tuple[str, str, int, float]:
        """What was searched, and for how long."""
        return (self.kind, self.architecture, self.seed, self.minutes)


def surveyed(plant: Plant, folder: Path, *, minutes: float) -> Row:
    """Builds a model and searches it twice."""
    build(plant, folder)
    request = HuntRequest(minutes=minutes, ends_at_first=True, is_quick=True, seed=plant.seed)
    both = compared(folder, request)
    found = both.found
    return Row(
        kind=plant.kind,
        architecture=plant.architecture,
        seed=plant.seed,
        minutes=minutes,
        probes=max(both.probes),
        largest=max(row.found_abs_max for row in found.rows),
        found_by=_found_by(found),
        num_forwards=found.num_forwards,
        num_inputs=found.num_inputs,
        num_tokens=found.num_tokens,
        seconds=both.seconds,
        by_chance=max(both.by_chance),
    )


def _found_by(found: Hunt) -> str | None:
    """The part of the search whose text overflows in the real run; None where none does."""
    for row in found.rows:
        if row.status is HuntStatus.REFUTED and row.prompt is not None:
            prompt = found.prompts[row.prompt]
            if prompt.text is not None:
                return prompt.found_by
    return None


HEADER = (
    "| trigger | model | seed | probes | found | by | forwards | inputs | tokens | s | random |",
    "|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
)


def line(row: Row) -> str:
    """A row of the table in Markdown."""
    is_found = row.found_by is not None
    return (
        f"| {row.kind} | {row.architecture} | {row.seed} | {row.probes:,.0f} | "
        f"{f'{row.largest:,.0f}' if is_found else 'no'} | {row.found_by or DASH} | "
        f"{row.num_forwards:,} | {row.num_inputs:,} | {row.num_tokens:,} | {row.seconds:.0f} | "
        f"{row.by_chance:,.0f} |"
    )


def summary(rows: Sequence[Row]) -> str:
    """How many of the models each of the two searches breaks."""
    num_found = sum(row.found_by is not None for row in rows)
    by_chance = sum(row.by_chance > LIMIT for row in rows)
    return (
        f"Found in {num_found} of {len(rows)} models; random texts in as many forwards break "
        f"{by_chance}."
    )


def kept_in(file: Path) -> dict[tuple[str, str, int, float], Row]:
    """The rows that a survey has measured before it was broken off."""
    if not file.is_file():
        return {}
    rows = [Row(**json.loads(text)) for text in file.read_text(encoding="utf-8").splitlines()]
    return {row.key: row for row in rows}


def main() -> None:
    """Runs the survey, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="of each search, on two cores")
    parser.add_argument("--only", help="kind or architecture")
    parser.add_argument("--shift", type=int, default=0, help="added to every seed")
    parser.add_argument("--keep", type=Path, default=Path("build/hunts.jsonl"), help="the rows")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    options.keep.parent.mkdir(parents=True, exist_ok=True)
    kept, rows = kept_in(options.keep), []
    for text in HEADER:
        _say(text)
    for planned in PLANTS:
        if options.only not in {None, planned.kind.name.lower(), planned.architecture}:
            continue
        plant = replace(planned, seed=planned.seed + options.shift)
        row = kept.get((plant.kind, plant.architecture, plant.seed, options.minutes))
        if row is None:
            with tempfile.TemporaryDirectory() as folder:
                row = surveyed(plant, Path(folder), minutes=options.minutes)
            with options.keep.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(asdict(row))}\n")
        rows.append(row)
        _say(line(row))
    _say(f"\n{summary(rows)}")


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
