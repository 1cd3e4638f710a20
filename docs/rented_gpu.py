# /// script
# requires-python = ">=3.11"
# dependencies = ["precheck-llm"]
#
# [tool.uv.sources]
# precheck-llm = { path = ".." }
# ///
"""Scans a model on a rented machine, with nothing there but uv and a copy of this repository.

    uv run docs/rented_gpu.py MODEL [OPTIONS OF precheck scan]

uv reads the lines above: it fetches Python and the libraries, and installs precheck from the
repository that this file lies in. Of a copy without the repository, change the path, or write
``{ git = "URL" }`` in its place.

First planted faults and the device's arithmetic are tried, which takes seconds; then the model is
scanned. report.json and report.md are written into the working folder, also where the scan ends
with 1: the model does not pass.
"""

from __future__ import annotations

import subprocess
import sys


def precheck(*words: str) -> int:
    """Runs a command; its exit code."""
    return subprocess.run([sys.executable, "-m", "precheck", *words], check=False).returncode  # noqa: S603


if __name__ == "__main__":
    written = ("-o", "report.json", "-o", "report.md")
    sys.exit(precheck("env", "--selftest") or precheck("scan", *sys.argv[1:], *written))
