"""What weights and cache take in a format: estimates from the shapes in the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts.deployed_formats import bits

if TYPE_CHECKING:
    from precheck.records.report import Report, Run

_LONGEST = 32_768
"""Tokens: what a cache is shown for, unless the model's context is shorter."""
_BITS = 8
"""Of a byte."""


def num_cache_tokens(report: Report) -> int:
    """How long the sequence is that a cache is shown for."""
    return min(_LONGEST, report.model.max_context or _LONGEST)


def weights_bytes(report: Report, run: Run) -> float | None:
    """Bytes of the weights; None where it is not known how many of them the format stores.

    Embeddings, the head and norms stay in the dtype.
    """
    fits = [fit for advised in report.recommendations for fit in advised.fits]
    whole = next((fit.weights_bytes for fit in fits if fit.dtype == run.dtype), None)
    if run.quantization is None or whole is None:
        return whole
    widths, stored = report.model.widths, bits(f"q:{run.quantization}")
    if widths is None or widths.layer_weights is None or stored is None:
        return None
    in_dtype = run.dtype.limits.num_bytes * widths.layer_weights
    if report.model.quantization is not None or in_dtype > whole:
        return None  # they are stored in a format of their own
    return whole - in_dtype + widths.layer_weights * stored / _BITS


def cache_bytes(report: Report, run: Run) -> float | None:
    """Bytes of the cache of one sequence; None where the model's cache is not known.

    States of linear attention stay in the dtype.
    """
    cache, num_bytes = report.model.cache, run.dtype.limits.num_bytes
    if cache is None:
        return None
    stored: float | None = num_bytes * _BITS
    if run.kv_cache_dtype is not None:
        stored = bits(f"kv:{run.kv_cache_dtype}")
    if stored is None:
        return None
    states = cache.fixed_elements * num_bytes
    return states + cache.keys_and_values(num_cache_tokens(report)) * stored / _BITS
