"""What writing a fixed checkpoint costs: memory inside a limit, and time against copying it.

``make bench ARGS=fix-writing``

7 B Qwen2 shape, 4 GiB. The residual stream is made smaller, so that every layer's two writers, the
embedding and an epsilon change. Copying and writing take turns; both end with the data on the disk,
and both begin without the page cache.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import time
from typing import TYPE_CHECKING

from benchmarks.checkpoints import add_options, checkpoint, size_bytes
from benchmarks.runs import forget_cached, memory_limit, watch
from precheck.checkpoint.rewriting import write_checkpoint
from precheck.checkpoint.source import open_checkpoint
from precheck.cure.scales.solve import choose
from precheck.cure.scales.traced_checkpoint import trace_checkpoint
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from pathlib import Path

_GIB = 1 << 30


def write(model: Path, output: Path) -> None:
    """The checkpoint with its residual stream times 2^-4."""
    opened = open_checkpoint(str(model), observe=lambda _: None)
    with opened.open_weights() as stored:
        traced = trace_checkpoint(
            opened,
            stored,
            dtype=Dtype.FLOAT16,
            attn_implementation="sdpa",
            with_whole_numbers=False,
        )
        last = f"model.layers.{opened.config.num_hidden_layers - 1}"
        choice = choose(
            traced.scales,
            peaks={(last, "aten.add", 1): 200_000.0},
            limit=Dtype.FLOAT16.limits.max,
            headroom_bits=2.0,
        )
        changes = traced.stored_changes(choice.exponents, stored)
        began = time.monotonic()
        output.mkdir()
        write_checkpoint(output, opened, stored, changes=changes, settings={}, dtype="float16")
        sys.stderr.write(f"{len(changes)} tensors changed; {time.monotonic() - began:.1f}\n")


def copy(model: Path, output: Path) -> None:
    """The same files, and their data on the disk."""
    began = time.monotonic()
    shutil.copytree(model, output)
    for file in output.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sys.stderr.write(f"copied; {time.monotonic() - began:.1f}\n")


def main() -> None:
    """Prints a line for each pair, and the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, size="7b")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--child", choices=("write", "copy"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    model = checkpoint(options.folder, options.size, num_layers=options.layers)
    if options.child:
        {"write": write, "copy": copy}[options.child](model, options.folder / "benchmark-output")
        return
    print(f"checkpoint {size_bytes(model) / _GIB:.2f} GiB, limit {options.limit:g} GiB")
    seconds: dict[str, list[float]] = {"copy": [], "write": []}
    for pair in range(options.pairs):
        for child in sorted(seconds, reverse=bool(pair % 2)):
            seconds[child].append(_run(child, model, options))
    ratios = [ours / theirs for ours, theirs in zip(*reversed(seconds.values()), strict=True)]
    print(f"writing takes {statistics.median(ratios):.2f} times as long as copying {ratios}")


def _run(child: str, model: Path, options: argparse.Namespace) -> float:
    output = options.folder / "benchmark-output"
    shutil.rmtree(output, ignore_errors=True)
    forget_cached(model)
    arguments = ["--child", child, "--folder", str(options.folder), "--size", options.size]
    if options.layers:
        arguments += ["--layers", str(options.layers)]
    command = [sys.executable, "-m", "benchmarks.fix_writing", *arguments]
    with memory_limit(int(options.limit * _GIB)) as group:
        found = watch(command, group=group)
    shutil.rmtree(output, ignore_errors=True)
    if found.exit_code:
        sys.exit(f"{child} ended with {found.exit_code}: {found.stderr[-500:]}")
    taken = float(found.stderr.rpartition("; ")[2])
    print(f"{child}: {taken:.1f} s, peak anonymous memory {max(found.anonymous) / _GIB:.2f} GiB")
    return taken


if __name__ == "__main__":
    main()
