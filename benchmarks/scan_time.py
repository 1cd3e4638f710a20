"""A scan against bare forwards of the same runs, plain loading, and loading three times with hooks.

``make bench ARGS=scan-time``

1.5 B Qwen2 shape, one prompt of 256 tokens, three dtypes, sdpa; or the default probes with every
attention implementation (``--default``). Everything is a process of its own, one after the other;
a ratio is taken within a turn, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import add_options, checkpoint
from benchmarks.runs import token_prompts
from precheck.measure.machine.environment import read_environment

_HERE = Path(__file__).parent


def main() -> None:
    """Prints the processor, a line for each thing that was timed, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, size="1.5b")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--default", action="store_true", help="default probes, all attentions")
    options = parser.parse_args()
    model = checkpoint(options.folder, options.size, num_layers=options.layers)
    environment = read_environment()
    features = ", ".join(name for device in environment.devices for name in device.features)
    print(f"{environment.cpu}, {environment.num_threads} threads, {features}")
    with tempfile.TemporaryDirectory() as folder:
        prompts = token_prompts(Path(folder), num_tokens=options.tokens)
        batches = Path(folder) / "default" if options.default else Path(folder) / "batches"
        prompts.rename(f"{folder}/batches.jsonl")
        turns = [turn(model, batches, is_default=options.default) for _ in range(options.repeats)]
    _print_medians(turns)


def turn(model: Path, batches: Path, *, is_default: bool) -> dict[str, float]:
    """Seconds of everything, once."""
    attentions = () if is_default else ("sdpa",)
    scan = _run("timed_scan.py", model, batches, *attentions)
    load = _run("plain_load.py", model)
    runs = [tuple(run) for run in scan["runs"]]
    measured = tuple(dict.fromkeys(attention for _, attention, _ in runs))
    bare = _run("bare.py", model, batches, *measured)
    seconds = {
        "scan": scan["report"],
        "scan, without imports": scan["report"] - scan["imports"],
        "imports": scan["imports"],
        "imports of a plain load": load["imports"],
        "first forward": scan["first forward"],
        "first forward of a plain load": load["first forward"],
        "bare forwards, native": bare["float32"] + bare["bfloat16"] + bare["float16"],
        "bare forwards, same arithmetic": sum(
            bare[dtype if arithmetic == "native" else arithmetic]
            for dtype, arithmetic in {(dtype, arithmetic) for dtype, _, arithmetic in runs}
        ),
    }
    if not is_default:
        seconds["loading three times"] = _run(
            "load_three_times.py", model, batches.with_suffix(".jsonl")
        )["seconds"]
    print({name: round(value, 2) for name, value in seconds.items()}, flush=True)
    return seconds


RATIOS = (
    ("scan, without imports", "bare forwards, native"),
    ("scan, without imports", "bare forwards, same arithmetic"),
    ("scan", "loading three times"),
    ("imports", "imports of a plain load"),
    ("first forward", "first forward of a plain load"),
)


def _print_medians(turns: list[dict[str, float]]) -> None:
    for name in turns[0]:
        print(f"{name:32} {_spread([each[name] for each in turns])} s")
    for name, other in RATIOS:
        if other in turns[0]:
            print(f"{name} / {other}: {_spread([each[name] / each[other] for each in turns])}")


def _run(script: str, *arguments: str | Path) -> dict[str, Any]:
    """What a script of this folder prints as JSON in its last line."""
    command = [sys.executable, str(_HERE / script), *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603
    if ran.returncode:
        sys.exit(f"{script} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
