"""What the stored weights are, and what is wrong with them: names, shapes, ties, scales."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFault:
    """A faulty stored tensor, and how much of it is affected."""

    name: str
    num_elements: int
    """How many of its elements are affected."""
    abs_max: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeFault:
    """A parameter stored with another shape than the model expects."""

    name: str
    stored: tuple[int, ...]
    expected: tuple[int, ...]

    @property
    def is_shard(self) -> bool:
        """Whether it is a shard of a training run: empty, or a part of it in one flat row."""
        is_empty = 0 in self.stored and 0 not in self.expected
        return is_empty or len(self.stored) == 1 < len(self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Parameters stored under other names, all of which differ in the same part."""

    old: str
    """The part as it is stored, with its dot: ``_orig_mod.``; empty if it is missing."""
    new: str
    """What the model has instead; empty if nothing."""
    is_prefix: bool
    """Whether names begin with the part; otherwise it is somewhere inside."""
    stored: tuple[str, ...]
    """Names in the checkpoint."""
    parameters: tuple[str, ...]
    """The model's names, in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tie:
    """Two parameters that are one where the config ties them."""

    name: str
    """The one that the tie replaces: ``lm_head.weight``."""
    source: str
    """The one used for both: ``model.embed_tokens.weight``."""


class ScaleRole(StrEnum):
    """What a scale belongs to."""

    WEIGHT = "weight"
    INPUT = "input"
    """A linear's input: a static activation scale."""
    CACHE = "cache"
    """Keys, values, queries or probabilities."""


class ScaleFaultKind(StrEnum):
    """What is wrong with a scale."""

    NOT_FINITE = "not_finite"
    ZERO = "zero"
    """Of weights: of numbers that are not zero themselves."""
    NEGATIVE = "negative"
    TOO_SMALL = "too_small"
    """Its reciprocal, which kernels multiply by, is not finite."""
    SUBNORMAL = "subnormal"
    """A block's factor in float8_e4m3fn below 2^-6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFault:
    """A stored tensor of scales, and how many of them are faulty."""

    name: str
    role: ScaleRole
    kind: ScaleFaultKind
    num_faulty: int
    num_scales: int
    weight: str | None = None
    """Of weights: the weight that it scales, as the model calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheScale:
    """A stored scale of keys or of values; more than one number where heads have their own."""

    name: str
    of_keys: bool
    of_values: bool
    smallest: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """The largest inputs that static scales allow, of linears of one kind in one layer.

    One linear, or the same one of every expert.
    """

    module: str
    """The linear with the smallest."""
    smallest: float
    median: float
    largest: float
    num_linears: int
    num_inputs: int | None = None
    """Channels of an input; None where nothing here reads the weight's shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleAudit:
    """The stored scales of a checkpoint; nothing of them is in a checkpoint that has none."""

    num_scales: int = 0
    """Numbers that were read, not tensors."""
    num_stored: int | None = None
    """Numbers that are stored: more where a sample was read.

    None in reports of earlier versions.
    """
    faults: tuple[ScaleFault, ...] = ()
    missing: tuple[str, ...] = ()
    """Names of static scales that other linears of their kind have."""
    cache_format: str | None = None
    """Of keys and values, as the config declares it with static scales: ``float8``."""
    cache: tuple[CacheScale, ...] = ()
    inputs: tuple[InputRange, ...] = ()

    @property
    def explained(self) -> frozenset[str]:
        """Names of what is NaN, infinite or zero because of a scale, the scale among them."""
        kinds = {ScaleFaultKind.NOT_FINITE, ScaleFaultKind.ZERO}
        faults = [fault for fault in self.faults if fault.kind in kinds]
        weights = (fault.weight for fault in faults if fault.weight is not None)
        return frozenset({*weights, *(fault.name for fault in faults)})


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredType:
    """The tensors of a GGUF file that are stored in one type."""

    name: str
    """As ggml calls it, in lower case (``q4_k``); torch's name where torch has it."""
    num_tensors: int
    num_elements: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorRange:
    """Small tensors of one kind, such as a norm's weights in all layers, and how large they are."""

    kind: str
    """Their name, with ``*`` for the layer: ``model.layers.*.self_attn.k_proj.bias``."""
    num_tensors: int
    abs_max: float
    """Of all of them."""
    largest: str
    """The tensor that it is in."""
    median_abs_max: float
    """Half of the tensors have a smaller maximum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallReading:
    """What was read of a checkpoint whose weights were not."""

    num_tensors: int
    """Stored tensors that were read from end to end."""
    num_bytes: int
    """Theirs, and those of samples."""
    num_stored: int
    """All stored tensors."""
    vectors: tuple[VectorRange, ...] = ()
    num_tied_rows: int = 0
    """Rows that were compared of tensors that the config ties, where both are stored."""
    requests: int | None = None
    """To the Hub, for headers too; None where nothing was read there."""
    received_bytes: int | None = None
    """From the Hub, with headers and gaps between tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAudit:
    """What the stored weights are, without running them."""

    missing: tuple[str, ...] = ()
    """Parameters the model has and the checkpoint lacks: newly initialised, so random."""
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    """Parameters stored with another shape: newly initialised too."""
    shapes: tuple[ShapeFault, ...] = ()
    """Both shapes of each of these; empty in reports of earlier versions."""
    renamings: tuple[Renaming, ...] = ()
    """Missing parameters that are stored under one of the unexpected names."""
    untied: tuple[Tie, ...] = ()
    """Tied by the config, but stored with different values."""
    tieable: tuple[Tie, ...] = ()
    """Missing, not tied in the config, but of the same shape as a possible source."""
    unscaled: tuple[str, ...] = ()
    """Stored weights in float8, or packed, that are used without the scale they need."""
    unread_scales: tuple[str, ...] = ()
    """Stored scales that nothing reads, although their weights are used."""
    scales: ScaleAudit = field(default_factory=ScaleAudit)
    """Of a quantised checkpoint."""
    stored_types: tuple[StoredType, ...] = ()
    """Of a GGUF file, the largest first."""
    small: SmallReading | None = None
    """Set where small tensors alone were read: then nothing here is known of the others."""
    all_zero: tuple[str, ...] = ()
    """Weights without an element that is not zero, unlike those of other layers."""
    zero_scales: tuple[str, ...] = ()
    """Those of them that are zero because all of their scales are."""
    nonfinite: tuple[TensorFault, ...] = ()
    out_of_float16_range: tuple[TensorFault, ...] = ()
    """Finite weights that become inf when cast to float16."""
    num_elements: int = 0
    """Floating-point elements audited."""
    num_float16_zero: int = 0
    """Nonzero weights that become zero in float16."""
    num_float16_subnormal: int = 0
    """Weights that become subnormal in float16."""
    kept_in_float32: tuple[str, ...] = ()
    """Modules the architecture keeps in float32 when loaded with ``dtype=float16``."""
    num_kept_in_float32: int = 0
    """Their elements."""
    rounded_buffers: tuple[str, ...] = ()
    """Of a live module: buffers that a cast of the whole module rounded to 16 bits."""
    rounded_parameters: tuple[str, ...] = ()
    """Of a live module: parameters in 16 bits that a load would have left in float32."""
    size_bytes: int = 0
    checksum: str = "crc32"
    """The checksum of each tensor in the digests; ``xxh3_64/8MiB`` in new reports."""
    digest: str | None = None
    """SHA-256 over name, dtype, shape and checksum of every tensor; None if not all were read."""
    digests: dict[str, str] = field(default_factory=dict)
    """The same, 8 digits each, for the tensors of each layer: tells which one differs."""

    def has_weights_of(self, other: CheckpointAudit) -> bool | None:
        """Whether the weights are the same.

        None where the digests do not tell: one is missing, or they are of other checksums.
        """
        if self.digest is None or other.digest is None or self.checksum != other.checksum:
            return None
        return self.digest == other.digest
