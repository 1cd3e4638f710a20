"""Scans with one format more against scans without, and those without against an earlier version.

``make bench ARGS=format-time``

A small Qwen2, whole scans as processes of their own, in pairs of which each one goes first in turn.
With a format, the ratio may be one more share of the runs: 1.0 + 1.2 / runs. Without one, nothing
may cost: the interval of the median of at least 11 pairs against another checkout contains 1.00.

``--before`` is that checkout: ``git worktree add ../before 8528085`` has the last version without
formats. ``--processor`` compares processor time, which other work on the machine changes less than
seconds.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.checkpoints import add_options, checkpoint
from benchmarks.runs import Watched, scan_command, token_prompts, watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HERE = Path(__file__).parent.parent
RUNS = 3
"""In three dtypes with one attention implementation; a format adds one."""
MOST_PER_RUN = 1.2
LEAST_PAIRS = 11
FORMATS = (("--kv-cache-dtype", "fp8_e4m3"), ("--quantization", "int8_weight"))


def main() -> None:
    """Prints a line for each format, and one for no format against the other checkout."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, size="1.5b")
    parser.set_defaults(layers=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=LEAST_PAIRS)
    parser.add_argument("--before", type=Path, help="a checkout without formats")
    parser.add_argument("--processor", action="store_true", help="compare processor time")
    options = parser.parse_args()
    took = processor_seconds if options.processor else seconds
    model = checkpoint(options.folder, options.size, num_layers=options.layers)
    with tempfile.TemporaryDirectory() as folder:
        prompts = token_prompts(Path(folder), num_tokens=options.tokens)
        python, *rest = scan_command(model, "--attn", "sdpa", "--prompts", prompts)
        # -P: the package is that of PYTHONPATH, whatever the working folder is
        plain = [python, "-P", *rest, "--fail-on", "never"]
        limit = 1.0 + MOST_PER_RUN / RUNS
        took(plain, HERE)  # reads the weights into the page cache
        for chosen in FORMATS:
            ratios = interleaved(
                ([*plain, *chosen], HERE), (plain, HERE), num_pairs=options.pairs, took=took
            )
            kept = "holds" if statistics.median(ratios) <= limit else "DOES NOT HOLD"
            print(f"{' '.join(chosen)}: {_said(ratios)}; at most {limit:.2f}: {kept}", flush=True)
        if options.before is not None:
            took(plain, options.before)  # compiles it
            ratios = interleaved(
                (plain, HERE), (plain, options.before), num_pairs=options.pairs, took=took
            )
            low, high = interval(ratios)
            kept = "holds" if low <= 1.0 <= high else "DOES NOT HOLD"
            few = "" if len(ratios) >= LEAST_PAIRS else f" (of fewer than {LEAST_PAIRS} pairs)"
            print(f"no format, against before: {_said(ratios)}; contains 1.00: {kept}{few}")


def interleaved(
    ours: tuple[Sequence[str], Path],
    theirs: tuple[Sequence[str], Path],
    *,
    num_pairs: int,
    took: Callable[[Sequence[str], Path], float],
) -> list[float]:
    """What the first takes over what the second takes, pair by pair; who begins alternates.

    Args:
        ours: a command, and the checkout whose package it runs.
        theirs: the other one.
        num_pairs: how often both are run.
        took: runs a command by the package in a checkout, and says what it took.
    """
    ratios = []
    for number in range(num_pairs):
        pair = [ours, theirs]
        order = pair if number % 2 else pair[::-1]
        found = [took(*each) for each in order]
        mine, other = found if number % 2 else found[::-1]
        ratios.append(mine / other)
    return ratios


def seconds(command: Sequence[str], checkout: Path) -> float:
    """Of one scan by the package in a checkout, imports included."""
    return _scan(command, checkout).seconds


def processor_seconds(command: Sequence[str], checkout: Path) -> float:
    """Of one scan by the package in a checkout, imports included, all threads."""
    return _scan(command, checkout).processor_seconds


def _scan(command: Sequence[str], checkout: Path) -> Watched:
    os.environ["PYTHONPATH"] = str(checkout.resolve())
    watched = watch(command)
    if watched.exit_code:
        sys.exit(f"a scan ended with {watched.exit_code}: {watched.stderr[-2000:]}")
    if "searching for" in watched.stderr:
        sys.exit("a format loses so much here that its culprits are searched for: not comparable")
    return watched


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the median, at 95 %: two of the values in order, by the binomial distribution.

    Fewer than six values have no such interval: all of them are in it.
    """
    ordered, number = sorted(values), len(values)
    outside, rank = 0.0, 0
    while rank < number // 2:
        outside += math.comb(number, rank) / 2**number
        if 2 * outside > 0.05:  # noqa: PLR2004
            break
        rank += 1
    first = max(rank - 1, 0)
    return ordered[first], ordered[number - 1 - first]


def _said(ratios: Sequence[float]) -> str:
    low, high = interval(ratios)
    pairs = f"{len(ratios)} pair{'s' if len(ratios) > 1 else ''}"
    return f"{statistics.median(ratios):.3f} (95 % interval {low:.3f} to {high:.3f}, {pairs})"


if __name__ == "__main__":
    main()
