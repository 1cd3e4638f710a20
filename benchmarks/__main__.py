"""``python -m benchmarks NAME [OPTIONS]`` runs one of the benchmarks; without a name, lists them.

Each is a module here whose ``main`` reads its own options (``--help``).
"""

from __future__ import annotations

import sys
from importlib import import_module

BENCHMARKS = {
    "watching": "what watching costs, on a model of a billion parameters",
    "scan-time": "a scan against loading three times and bare forwards (minutes, 3 GB)",
    "format-time": "a scan with a format against one without, and against before (an hour)",
    "scan-memory": "a 7 B scan in 4 GiB, as root: memory and reads (10 minutes, 15 GB of disk)",
    "scan-scaling": "cost against layers, tokens and runs, with a picture (minutes)",
    "arithmetic": "float32-rounded against native products (minutes)",
    "fix-writing": "writing a fixed 7 B checkpoint in 4 GiB, as root, against copying it (45 GB)",
    "prove-time": "what --prove adds to a scan of a model (minutes)",
    "live": "what precheck.watch costs a model of a billion parameters (minutes)",
}


def main() -> None:
    """Runs the benchmark that the first argument names, with the arguments behind it."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHMARKS:
        rows = [f"  {known:<14}{text}" for known, text in BENCHMARKS.items()]
        said = f"unknown benchmark: {name!r}; the" if name else "The"
        print("\n".join([f"{said} benchmarks (each has --help):", *rows]))
        sys.exit(2 if name else 0)
    del sys.argv[1]
    import_module(f"benchmarks.{name.replace('-', '_')}").main()


if __name__ == "__main__":
    main()
