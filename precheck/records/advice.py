"""Advice: what to use on a device, what fits into it, and what engines would do there."""

from __future__ import annotations

from dataclasses import dataclass

from precheck.records.configuration import Configuration
from precheck.records.finding import Confidence, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The device that the advice is for."""

    name: str
    compute_capability: str | None = None
    """``sm_75`` or ``gfx942``; None elsewhere."""
    memory_bytes: int | None = None
    assumptions: tuple[str, ...] = ()
    """What is assumed about it, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A configuration that was not chosen, and why."""

    dtype: str
    attn_implementation: str
    why: str

    @property
    def name(self) -> str:
        """How the configuration is named in prose."""
        return str(Configuration.of(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a model takes of a device's memory in one dtype, in bytes."""

    dtype: str
    weights_bytes: int
    """As stored if quantised, otherwise in the dtype; modules kept in float32 count as float32."""
    activation_bytes: int
    """Estimate: one sequence of ``num_prefill_tokens`` in a fused attention implementation."""
    num_prefill_tokens: int
    kv_cache_bytes_per_token: int | None
    """Of layers that keep every token; None where the cache is not known."""
    kv_cache_bytes_fixed: int
    """Of layers that keep a window or a state, for one sequence."""
    usable_bytes: int | None
    """What an engine takes of the device by default; None where the memory is not known."""
    num_cache_tokens: int | None
    """Cache tokens that fit next to weights and activations, at most the model's context.

    None where that is not known.
    """
    fits: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionOption:
    """One attention implementation of transformers for one dtype on a device."""

    attn_implementation: str
    dtype: str
    usable: bool
    """The model has it and the device runs it in this dtype."""
    installed: bool
    """In the environment of the scan."""
    kernel: str | None
    """What torch's scaled_dot_product_attention would run; other implementations are their own."""
    verdict: Verdict | None
    """None if no measurement applies to it."""
    confidence: Confidence
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAdvice:
    """What an engine does by default with the model on a device, and what to run instead."""

    engine: str
    version: str
    """The release whose source was read."""
    read: str
    """When, as a date."""
    default_dtype: str | None
    """None where the engine refuses, or does not run there."""
    default: str
    """What it does without a flag."""
    is_default_safe: bool | None
    """None if no measurement applies to it, or the dtype is only emulated."""
    command: str | None
    """What to run; None where no flag helps."""
    why: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A remedy smaller than another dtype that was considered."""

    what: str
    helps: bool
    confidence: Confidence
    why: str
    snippet: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recommendation:
    """What to use on one device."""

    dtype: str | None
    """None when no measured configuration can be recommended."""
    attn_implementation: str | None
    target: Target
    reasons: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    snippets: dict[str, str]
    confidence: str = "measured"
    """``measured`` on the device itself, ``predicted`` for another."""
    fits: tuple[Fit, ...] = ()
    """One for each dtype."""
    attention: tuple[AttentionOption, ...] = ()
    """In the recommended dtype, or in the deployed one where none is recommended."""
    engines: tuple[EngineAdvice, ...] = ()
    remedies: tuple[Remedy, ...] = ()

    @property
    def name(self) -> str:
        """How the recommended configuration is named in prose; ``nothing`` where there is none."""
        return "nothing" if self.dtype is None else str(Configuration.of(self))
