"""precheck: does this model run in half precision here, and if not, which operation breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.pipeline import apply, read_report, scan, watch
    from precheck.records.report import Report

__version__ = "0.1.0"
__all__ = ["Report", "__version__", "apply", "read_report", "scan", "watch"]


def __getattr__(name: str) -> object:
    """The public names, imported when first asked for."""
    # pipeline imports __version__ from here, so it cannot be imported above.
    match name:
        case "scan":
            from precheck.pipeline import scan  # noqa: PLC0415

            return scan
        case "watch":
            from precheck.pipeline import watch  # noqa: PLC0415

            return watch
        case "apply":
            from precheck.pipeline import apply  # noqa: PLC0415

            return apply
        case "read_report":
            from precheck.pipeline import read_report  # noqa: PLC0415

            return read_report
        case "Report":
            from precheck.records.report import Report  # noqa: PLC0415

            return Report
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
