"""What a scan costs against decoder layers, tokens and configurations: straight lines.

``make bench ARGS=scan-scaling``

Times the measuring itself (models made, not yet run, to the report), on the widths of Qwen2-1.5B,
prints a table with a least-squares line each, and draws it. Then it scans the whole shape as a user
would, and prints how good the time left was.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import precheck
from benchmarks.checkpoints import checkpoint
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Step

if TYPE_CHECKING:
    from collections.abc import Sequence

LAYERS = (2, 4, 8, 12, 16)
TOKENS = (64, 128, 256, 512, 1024)
CONFIGURATIONS = (
    (("float32",), ("sdpa",)),
    (("float32", "float16"), ("sdpa",)),
    (("float32",), ("sdpa", "eager")),
    (("float32", "float16"), ("sdpa", "eager")),
)
"""Dtypes and attention implementations whose products cost about the same where float16 is
computed in float32 and rounded."""


def main() -> None:
    """Three tables and a picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--picture", type=Path, default=Path("scaling.png"))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    models = {each: checkpoint(options.folder, "1.5b", num_layers=each) for each in LAYERS}
    scan_seconds(models[2], num_tokens=64)  # imports, first use of every library
    tables = {
        "decoder layers": [
            (each, median(models[each], options.repeats, num_tokens=256)) for each in LAYERS
        ],
        "tokens": [(each, median(models[8], options.repeats, num_tokens=each)) for each in TOKENS],
        "runs (float32 and float16)": [
            (
                len(dtypes) * len(attention),
                median(models[8], options.repeats, num_tokens=256, runs=(dtypes, attention)),
            )
            for dtypes, attention in CONFIGURATIONS
        ],
    }
    for name, points in tables.items():
        slope, start, determination = line_through(points)
        print(f"{name}: {start:.2f} s + {slope:.4f} s each, R^2 {determination:.4f}")
        for count, seconds in points:
            print(f"  {count:5} {seconds:7.2f} s   line {start + slope * count:7.2f} s")
    draw(tables, options.picture)
    show_time_left(checkpoint(options.folder, "1.5b"))


def show_time_left(model: Path) -> None:
    """How the time left that was shown compares with the time it then took."""
    shown: list[tuple[float, Step]] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Step):
            shown.append((time.perf_counter(), event))

    precheck.scan(model, observe=observe)
    end = time.perf_counter()
    taken = end - shown[0][0]
    ratios = [
        (now, step.seconds_left / (end - now))
        for now, step in shown
        if step.seconds_left is not None and end - now > taken / 20
    ]
    first = (ratios[0][0] - shown[0][0]) / taken
    found = [ratio for _, ratio in ratios]
    print(
        f"time left of a scan of {taken:.0f} s, shown from {first:.0%} of it on: "
        f"{min(found):.2f} to {max(found):.2f} of the time it took, median "
        f"{statistics.median(found):.2f}; the last twentieth left out"
    )


def median(model: Path, repeats: int, **options: object) -> float:
    """Median seconds."""
    return statistics.median(scan_seconds(model, **options) for _ in range(repeats))  # type: ignore[arg-type]


def scan_seconds(
    model: Path,
    *,
    num_tokens: int,
    runs: tuple[tuple[str, ...], tuple[str, ...]] = (("float32", "bfloat16"), ("sdpa",)),
) -> float:
    """Seconds from the first step to the report."""
    chooser = random.Random(0)  # noqa: S311  no secret
    row = min(num_tokens, 256)
    prompts = [[chooser.randrange(151_000) for _ in range(row)] for _ in range(num_tokens // row)]
    started: list[float] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Step) and not started:
            started.append(time.perf_counter())

    dtypes, attention = runs
    first = Configuration(dtype=Dtype.FLOAT32, attn_implementation="sdpa")
    precheck.scan(
        model,
        dtypes=dtypes,
        attn_implementations=attention,
        require=[first],  # else what the checkpoint declares is run too
        prompts=prompts,
        observe=observe,
    )
    return time.perf_counter() - started[0]


def line_through(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Slope, start and coefficient of determination of the least-squares line."""
    counts, seconds = zip(*points, strict=True)
    slope, start = statistics.linear_regression(counts, seconds)
    correlation = statistics.correlation(counts, seconds)
    return slope, start, correlation**2


def draw(tables: dict[str, list[tuple[int, float]]], file: Path) -> None:
    """The points and the lines, one picture."""
    from matplotlib import pyplot as plt  # noqa: PLC0415  only this needs it

    figure, axes = plt.subplots(1, len(tables), figsize=(12, 3.6), layout="constrained")
    for axis, (name, points) in zip(axes, tables.items(), strict=True):
        counts, seconds = zip(*points, strict=True)
        slope, start, determination = line_through(points)
        axis.plot([0, counts[-1]], [start, start + slope * counts[-1]], color="0.7")
        axis.plot(counts, seconds, "o")
        axis.set(xlabel=name, ylabel="seconds", ylim=(0, None), title=f"R² {determination:.4f}")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
