"""precheck: does this model run in half precision here, and if not, which operation breaks it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.version import __version__

if TYPE_CHECKING:
    from precheck.cure.apply import apply
    from precheck.pipeline import scan, watch
    from precheck.records.report import Report
    from precheck.saved import read_report

__all__ = ["Report", "__version__", "apply", "read_report", "scan", "watch"]


def __dir__() -> list[str]:
    """Its public names."""
    return __all__


def __getattr__(name: str) -> object:
    """The public names, imported on first use."""
    # they import torch, which takes a second
    match name:
        case "scan":
            from precheck.pipeline import scan  # noqa: PLC0415

            return scan
        case "watch":
            from precheck.pipeline import watch  # noqa: PLC0415

            return watch
        case "apply":
            from precheck.cure.apply import apply  # noqa: PLC0415

            return apply
        case "read_report":
            from precheck.saved import read_report  # noqa: PLC0415

            return read_report
        case "Report":
            from precheck.records.report import Report  # noqa: PLC0415

            return Report
        case _:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
