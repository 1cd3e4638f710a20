"""Errors of one run that end all of them."""

from __future__ import annotations

from precheck.errors import (
    PrecheckError,
    UnsupportedConfigurationError,
    WeightsElsewhereError,
    first_line,
)
from precheck.measure.machine.memory import is_out_of_memory, memory_error


def raise_if_fatal(error: BaseException) -> None:
    """Raises an error that concerns every run; returns if it concerns one run alone.

    Raises:
        PrecheckError: weights that cannot be read, or memory that ran out.
        WeightsElsewhereError: weights are used outside the module that owns them.
    """
    if isinstance(error, RuntimeError | NotImplementedError) and "meta" in str(error):
        raise WeightsElsewhereError(
            f"weights are used outside the module that owns them: {first_line(error)}",
            hint="--resident",
        ) from error
    if isinstance(error, PrecheckError) and not isinstance(error, UnsupportedConfigurationError):
        raise error
    if is_out_of_memory(error):
        raise memory_error(error, doing="during the scan") from error
