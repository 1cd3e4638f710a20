"""Whether a model fits into a device's memory: weights from the headers, cache, activations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.thresholds import PREFILL_TOKENS, USABLE_MEMORY
from precheck.records.advice import Fit
from precheck.records.precision import Dtype
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.records.report import Measurements

_BYTES = {
    "float64": 8,
    "int64": 8,
    "uint64": 8,
    "int32": 4,
    "uint32": 4,
    "int16": 2,
    "uint16": 2,
}
"""Of dtypes that are not cast to that of a run; one byte for others (int8, uint8, float8, bool)."""

_CAST = frozenset({"float16", "bfloat16", "float32", "float64"})
_FLOAT32_BYTES = 4


def fit(measurements: Measurements, *, device: Hardware, dtype: Dtype) -> Fit:
    """What the model takes in a dtype, and what the device has; one sequence, fused attention.

    Activations are an estimate: the residual stream four times (itself, normalised, a sublayer's
    input and output) and the widest layer three times (gate, up and their product), for every
    token of a prefill, and float32 logits of its last token.
    """
    weights = weights_bytes(measurements, dtype)
    model, size = measurements.model, dtype.limits.num_bytes
    tokens = int(PREFILL_TOKENS.value)
    activations = 0
    if model.widths is not None:
        per_token = 4 * model.widths.hidden + 3 * model.widths.widest
        activations = tokens * per_token * size + model.widths.vocabulary * _FLOAT32_BYTES
    cache = model.cache
    per_token_cache = None if cache is None else cache.elements_per_token * size
    fixed = 0
    if cache is not None:
        fixed = (cache.windowed_elements_per_token * cache.window + cache.fixed_elements) * size
    usable = None
    if device.memory_bytes is not None:
        usable = int(device.memory_bytes * USABLE_MEMORY.value)
    left = None if usable is None else usable - weights - activations - fixed
    num_cache_tokens = None
    if left is not None and per_token_cache:
        num_cache_tokens = max(0, left // per_token_cache)
        if model.max_context is not None:
            num_cache_tokens = min(num_cache_tokens, model.max_context)
    return Fit(
        dtype=dtype,
        weights_bytes=weights,
        activation_bytes=activations,
        num_prefill_tokens=tokens,
        kv_cache_bytes_per_token=per_token_cache,
        kv_cache_bytes_fixed=fixed,
        usable_bytes=usable,
        num_cache_tokens=num_cache_tokens,
        fits=None if left is None else left >= tokens * (per_token_cache or 0),
    )


def weights_bytes(measurements: Measurements, dtype: Dtype) -> int:
    """Bytes of the weights loaded in a dtype; packed integers and 8-bit floats stay what they are.

    MXFP4, GGUF and the like count as stored too: that is what engines with kernels for them hold.
    """
    blocks = measurements.checkpoint.stored_types
    if blocks:
        return sum(each.num_bytes for each in blocks)
    sizes = measurements.model.tensor_dtypes
    cast = sum(count for name, count in sizes.items() if name in _CAST)
    packed = sum(count * _BYTES.get(name, 1) for name, count in sizes.items() if name not in _CAST)
    kept = measurements.checkpoint.num_kept_in_float32 if dtype is Dtype.FLOAT16 else 0
    return packed + cast * dtype.limits.num_bytes + kept * (_FLOAT32_BYTES - dtype.limits.num_bytes)


def does_not_fit(memory: Fit) -> str | None:
    """Why it does not fit, in words; None where it does or where that is not known.

    >>> does_not_fit(Fit(dtype="float32", weights_bytes=30 << 30, activation_bytes=1 << 30,
    ...     num_prefill_tokens=2048, kv_cache_bytes_per_token=None, kv_cache_bytes_fixed=0,
    ...     usable_bytes=15 << 30, num_cache_tokens=None, fits=False))
    'does not fit: 30.0 GiB of weights and 1.0 GiB of activations and cache, 15.0 GiB available'
    """
    if memory.fits is not False or memory.usable_bytes is None:
        return None
    besides_weights = (
        memory.activation_bytes
        + memory.kv_cache_bytes_fixed
        + memory.num_prefill_tokens * (memory.kv_cache_bytes_per_token or 0)
    )
    return (
        f"does not fit: {num_bytes(memory.weights_bytes)} of weights and "
        f"{num_bytes(besides_weights)} of activations and cache, "
        f"{num_bytes(memory.usable_bytes)} available"
    )


def fits_words(memory: Fit) -> str | None:
    """How it fits, in words; None where it does not or where that is not known."""
    if not memory.fits or memory.usable_bytes is None:
        return None
    weights = f"{num_bytes(memory.weights_bytes)} of weights"
    if memory.num_cache_tokens is None:
        return weights
    return f"{weights}, room for {memory.num_cache_tokens:,} tokens of cache"
