"""A fix with its proof, and a recipe: JSON contracts ``precheck-fix/1``, ``precheck-recipe/1``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from precheck.errors import ReportError
from precheck.records.finding import Verdict
from precheck.records.plain import check_bounds, plain
from precheck.records.precision import Dtype

FIX_SCHEMA, RECIPE_SCHEMA = "precheck-fix/1", "precheck-recipe/1"


class Remedy(StrEnum):
    """What makes a checkpoint run in the dtype, the cheapest first."""

    NOTHING = "nothing"
    """It runs already."""
    ATTENTION = "attention"
    """Another attention implementation; nothing is written."""
    RESCALING = "rescaling"
    """Weights times powers of two."""
    FLOAT32_MODULES = "float32_modules"
    """Some modules stay in float32: a recipe is written, no checkpoint."""
    NONE = "none"
    """Nothing was found."""


class Exactness(StrEnum):
    """How close the fixed checkpoint is to the original, both in float32."""

    EXACT = "exact"
    """The same logits, bit for bit."""
    ROUNDED = "rounded"
    """The same except for rounding: of ``1 + w`` norms, or of values that became subnormal."""
    EPSILONS = "epsilons"
    """The same except for the epsilons of norms, which are not in the config."""
    APPROXIMATE = "approximate"
    """Nearly the same: equations were broken, because that was allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Neighbouring positions along one dimension of a tensor."""

    dim: int
    """Counted from the end: -1 is the last."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A block of a parameter and the power of two it was multiplied by."""

    parameter: str
    power: int
    block: tuple[Extent, ...] = ()
    """Which of its elements: those within every extent; empty: all of them."""
    shift: float | None = None
    """``shift + w`` was multiplied, instead of ``w``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange:
    """A number of the config that was changed."""

    name: str
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpHeadroom:
    """The headroom of an operation's result, before and after."""

    module: str
    op: str
    source: str
    abs_max: float
    """Of the original, in float32."""
    before_bits: float
    after_bits: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRun:
    """One checkpoint in one dtype against the original in float32, on probes kept for the proof."""

    checkpoint: str
    """``original`` or ``fixed``."""
    dtype: Dtype
    attn_implementation: str
    medium: str = "text"
    """What it was given: ``text``, ``image``, ``sound`` or ``video``, the last three with text."""
    is_tied: bool = False
    """Whether the parameters that the config ties are one, though the file has two of them."""
    verdict: Verdict
    reason: str | None = None
    kl_divergence_mean: float | None = None
    kl_divergence_max: float | None = None
    top1_agreement: float | None = None
    max_logit_difference: float | None = None
    """None where a logit is not finite."""
    is_identical: bool = False
    """Whether all logits are the same, bit for bit."""
    greedy: str | None = None
    """The text that it generates after the prompt."""


def run_label(run: ProofRun) -> str:
    """The dtype, and what sets the run apart from others in it: ``float16 with images``."""
    medium = "" if run.medium == "text" else f" with {run.medium}s"
    return f"{run.dtype}{medium}{', tied' if run.is_tied else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class MechanismHeadroom:
    """The least headroom of a mechanism, before and after, on the probes kept for the proof."""

    mechanism: str
    before_bits: float | None
    after_bits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Measurements of the fixed checkpoint, on probes that were not used to choose the fix."""

    holds: bool
    exactness: Exactness | None
    """None where float32 was not run, because the weights are the original's."""
    objections: tuple[str, ...]
    """Why it does not hold."""
    num_tokens: int
    runs: tuple[ProofRun, ...]
    headroom: tuple[MechanismHeadroom, ...] = ()
    num_changed: int = 0
    """Number of values that were multiplied."""
    num_became_zero: int = 0
    num_became_subnormal: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Float32Recipe:
    """Which modules to keep in float32: the file that ``precheck.apply`` reads."""

    schema: str = RECIPE_SCHEMA
    model: str
    dtype: Dtype
    attn_implementation: str
    modules: tuple[str, ...]
    num_bytes: int
    """Memory that this takes in addition to the 16-bit weights."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return plain(self)

    @classmethod
    def from_dict(cls, content: object) -> Float32Recipe:
        """The recipe that ``to_dict`` returned.

        Raises:
            ReportError: it is not a recipe, or has another schema.
        """
        schema = content.get("schema") if isinstance(content, dict) else None
        if schema != RECIPE_SCHEMA:
            raise ReportError(
                f"not a precheck recipe: schema {schema!r} (expected {RECIPE_SCHEMA!r})",
                hint="precheck fix MODEL -o DIR writes one if no cheaper remedy works",
            )
        try:
            check_bounds(content)
            return msgspec.convert(content, cls)
        except (msgspec.ValidationError, ValueError) as error:
            raise ReportError(f"recipe not readable: {error}", hint="write it again") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """The content of ``precheck-fix.json``."""

    schema: str = FIX_SCHEMA
    precheck_version: str
    model: str
    revision: str | None
    dtype: Dtype
    attn_implementation: str
    remedy: Remedy
    sentence: str
    """What was done, or what to do."""
    reasons: tuple[str, ...] = ()
    """Why not something cheaper, and what prevents it."""
    notes: tuple[str, ...] = ()
    """What to know about the fixed checkpoint, and about what it was proved on."""
    headroom_bits: float
    """Requested headroom."""
    factors: tuple[Factor, ...] = ()
    settings: tuple[SettingChange, ...] = ()
    rooms: tuple[OpHeadroom, ...] = ()
    """Results with less headroom than requested, before or after."""
    recipe: Float32Recipe | None = None
    proof: Proof | None = None
    """None if nothing was made, or with ``--dry-run``."""

    @property
    def is_prediction(self) -> bool:
        """Whether it says what would be done, as with ``--dry-run``."""
        needs_proof = self.remedy in {Remedy.RESCALING, Remedy.FLOAT32_MODULES}
        return needs_proof and self.proof is None

    @property
    def holds(self) -> bool:
        """Whether the checkpoint runs in the dtype, by this remedy."""
        if self.remedy is Remedy.NONE:
            return False
        return self.proof is None or self.proof.holds

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return plain(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorChange:
    """A block of a stored tensor, and the power of two to multiply it by.

    With a ``shift`` it is ``shift + w`` that is multiplied, which is what the model uses.
    """

    power: int
    block: tuple[Extent, ...] = ()
    """Which of its elements: those within every extent; empty: all of them."""
    shift: float | None = None
