"""What a scan needs: memory inside a limit that the kernel enforces, and bytes from storage.

``make bench ARGS=scan-memory``

7 B Qwen2 shape, default configurations, 4 GiB. First a process that takes 5 GiB shows that the
limit kills. ``--sparse`` scans a checkpoint that is larger than memory, whose matrices are holes,
and prints memory over time.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoints import add_options, checkpoint, size_bytes
from benchmarks.runs import Watched, forget_cached, memory_limit, scan_command, watch

_GIB = 1 << 30


def main() -> None:
    """Prints a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, size="7b")
    parser.add_argument("--limit", type=float, default=4.0, help="GiB")
    parser.add_argument("--sparse", action="store_true")
    parser.add_argument("options", nargs="*", help="more options of precheck scan")
    options = parser.parse_args()
    model = checkpoint(
        options.folder, options.size, num_layers=options.layers, sparse=options.sparse
    )
    limit = int(options.limit * _GIB)
    if not options.sparse:
        show_that_it_kills(limit)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = scan_command(
            model, "-o", report, "--fail-on", "never", f"--max-memory={limit}", *options.options
        )
        forget_cached(model)
        with memory_limit(limit) as group:
            found = watch(command, group=group)
            peak = _number(group / "memory.max_usage_in_bytes") or _number(group / "memory.peak")
        show(found, size_bytes(model), peak=peak)


def show_that_it_kills(limit: int) -> None:
    """A process that takes a quarter more than the limit has to die of it."""
    greedy = f"x = bytearray({limit + limit // 4}); x[::4096] = b'x' * len(x[::4096])"
    with memory_limit(limit) as group:
        found = watch([sys.executable, "-c", greedy], group=group)
    print(f"a process that takes {1.25 * limit / _GIB:.1f} GiB ends with {found.exit_code}")
    if found.exit_code == 0:
        sys.exit("the limit is not enforced here: run as root, with control groups")


def show(found: Watched, size: int, *, peak: int | None) -> None:
    """The figures of one scan."""
    anonymous = [anonymou / _GIB for anonymou in found.anonymous]
    print(f"exit code {found.exit_code} after {found.seconds:.0f} s")
    for line in found.stderr.splitlines():
        if re.search("weights read|gate|error", line):
            print(f"  {line}")
    print(f"checkpoint {size / _GIB:.2f} GiB")
    if peak is not None:
        print(f"peak of the group, page cache included {peak / _GIB:.2f} GiB")
    print(f"peak anonymous memory {max(anonymous):.2f} GiB")
    read = found.bytes_from_storage
    print(f"read from storage {read / _GIB:.2f} GiB, {read / size:.3f} of the checkpoint")
    quarters = [
        statistics.median(anonymous[len(anonymous) * i // 8 : len(anonymous) * (i + 1) // 8])
        for i in range(8)
    ]
    print("anonymous memory over time, medians of eighths, GiB:", [round(q, 2) for q in quarters])


def _number(file: Path) -> int | None:
    return int(file.read_text()) if file.exists() else None


if __name__ == "__main__":
    main()
