"""The row of headroom that limits a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from precheck.records.configuration import Configuration
    from precheck.records.traces import Headroom


def bits_left(row: Headroom, configuration: Configuration) -> float | None:
    """Headroom of this row in bits; None if it does not count for the configuration."""
    if row.attn_implementation not in {None, configuration.attn_implementation}:
        return None
    return row.headroom_bits.get(configuration.dtype)


def tightest(
    rows: Iterable[Headroom], configuration: Configuration
) -> tuple[Headroom, float] | None:
    """The row with the least headroom for this configuration, and its headroom in bits."""
    counting = [(row, left) for row in rows if (left := bits_left(row, configuration)) is not None]
    return min(counting, key=lambda pair: pair[1], default=None)
