"""``python -m precheck`` is the same as ``precheck``."""

from __future__ import annotations

from precheck.cli import main

if __name__ == "__main__":
    main()
