"""A whole scan against loading the model three times with hooks, and against bare forwards.

``make bench ARGS=scan-time``

1.5 B Qwen2 shape, one prompt of 256 tokens, three dtypes, sdpa. The whole processes run in turn; a
ratio is taken within a turn, and medians are printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoints import add_options, checkpoint
from benchmarks.runs import scan_command, token_prompts, watch

_HERE = Path(__file__).parent


def main() -> None:
    """Prints a line for each thing that was timed, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, size="1.5b")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    model = checkpoint(options.folder, options.size, num_layers=options.layers)
    with tempfile.TemporaryDirectory() as folder:
        prompts = token_prompts(Path(folder), num_tokens=options.tokens)
        report = Path(folder) / "report.json"
        compare(model, prompts, report, repeats=options.repeats)


def compare(model: Path, prompts: Path, report: Path, *, repeats: int) -> None:
    """Times everything, each turn in the other order."""
    scan = scan_command(
        model, "--attn", "sdpa", "--prompts", prompts, "-o", report, "--quiet", "--fail-on", "never"
    )
    load = [sys.executable, str(_HERE / "load_three_times.py"), str(model), str(prompts)]
    seconds: dict[str, list[float]] = {"scan": [], "load three times": []}
    bare: list[dict[str, float]] = []
    for turn in range(repeats):
        both = [("scan", scan), ("load three times", load)]
        for name, command in both[:: 1 if turn % 2 else -1]:
            found = watch(command)
            if found.exit_code:
                sys.exit(f"{name} ended with {found.exit_code}: {found.stderr[-2000:]}")
            seconds[name].append(found.seconds)
        bare.append(bare_forwards(model, prompts))
        print(
            f"turn {turn + 1}: { {name: round(found[-1], 2) for name, found in seconds.items()} }"
        )
    runs = json.loads(report.read_text())["runs"]
    arithmetic = {run["dtype"]: run["arithmetic"] for run in runs}
    print("arithmetic of the scan:", arithmetic)
    native = [each["float32"] + each["bfloat16"] + each["float16"] for each in bare]
    alike = [sum(each[_name(dtype, arithmetic)] for dtype in arithmetic) for each in bare]
    seconds |= {"bare forwards, native": native, "bare forwards, same arithmetic": alike}
    for name, found_seconds in seconds.items():
        print(f"{name:32} {_spread(found_seconds)} s")
    for name in ("load three times", "bare forwards, native", "bare forwards, same arithmetic"):
        ratios = [b / a for a, b in zip(seconds["scan"], seconds[name], strict=True)]
        print(f"{name} / scan: {_spread(ratios)}; scan / it: {1 / statistics.median(ratios):.2f}")


def _name(dtype: str, arithmetic: dict[str, str]) -> str:
    return dtype if arithmetic[dtype] == "native" else arithmetic[dtype]


def bare_forwards(model: Path, prompts: Path) -> dict[str, float]:
    """Seconds of one forward of each dtype, measured in a process of its own."""
    command = [sys.executable, str(_HERE / "bare.py"), str(model), str(prompts), "sdpa"]
    ran = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603
    seconds: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return seconds


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
