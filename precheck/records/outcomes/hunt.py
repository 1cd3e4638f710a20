"""What a search for the worst prompts found: the JSON contract ``precheck-hunt/1``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.plain import plain
from precheck.records.precision import Dtype
from precheck.records.traces import Overflow, Section

HUNT_SCHEMA = "precheck-hunt/1"

LARGEST_VALUE = 3.4e38
"""Stands for what is not finite even in float32: JSON has no infinity."""


class HuntStatus(StrEnum):
    """What the search says of an operation."""

    REFUTED = "refuted"
    """A prompt makes it overflow, in the real run."""
    OPEN = "open"
    """None was found: that is no proof."""


class Pattern(StrEnum):
    """What an image shows."""

    SCENE = "scene"
    """What the built-in images show: a gradient, edges, and a saturated corner."""
    FLAT = "flat"
    STRIPES = "stripes"
    CHECKS = "checks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image by the numbers that it is drawn from."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    pattern: Pattern = Pattern.SCENE
    period: int = 2
    """Pixels after which stripes and checks repeat."""
    contrast: float = 1.0
    """What the pattern's difference from middle grey is multiplied by."""
    brightness: float = 0.0
    """Added to all pixels, of half their range: -1 is black, 1 is white."""
    noise: float = 0.0
    """Standard deviation of noise in each pixel, of half their range."""
    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What red, green and blue are multiplied by."""
    seed: int = 0
    """Of the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorstPrompt:
    """An input, as the model gets it and as a user writes it."""

    token_ids: tuple[int, ...]
    text: str | None
    """None where the ids, decoded and tokenised again, are others, or are unused or special."""
    picture: Picture | None = None
    """The image that the text asks about; None for text alone."""
    found_by: str
    """Part of the search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HuntRow:
    """One mechanism in one layer: what the built-in probes reached and what the search reached."""

    module: str
    layer: int | None
    section: Section
    op: str
    source: str
    mechanism: Mechanism
    probes_abs_max: float
    """Of the operation's result in float32, over the built-in probes."""
    found_abs_max: float
    """The same over all that the search ran, and was a text if there is a tokenizer."""
    ids_abs_max: float | None = None
    """The same over inputs that are no texts, where that is larger."""
    limit: float
    """The largest finite value of the dtype."""
    prompt: int | None
    """Which of the prompts reached it; None where no input of the search did."""
    status: HuntStatus
    is_exact: bool = False
    """Every token was tried, and nothing else than the token changed it in texts that were drawn.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRun:
    """A run of the prompts that were found, as a scan measures it."""

    name: str
    verdict: Verdict
    reason: str | None
    first_overflow: Overflow | None
    prompt: int | None
    """The prompt that shows the overflow; None without one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hunt:
    """A search and what it found."""

    schema: str = HUNT_SCHEMA
    precheck_version: str
    model: str
    dtype: Dtype
    attn_implementation: str
    """Of the float32 model that was searched."""
    seed: int
    seconds: float
    num_forwards: int
    num_inputs: int
    num_tokens: int
    parts_left: tuple[str, ...]
    """Parts of the search that the time did not suffice for."""
    has_tokenizer: bool
    longest_tokens: int
    """Of the inputs that were run."""
    rows: tuple[HuntRow, ...]
    """The least headroom first."""
    prompts: tuple[WorstPrompt, ...]
    runs: tuple[CheckedRun, ...]
    """The prompts in the real runs."""

    @property
    def is_refuted(self) -> bool:
        """Whether some prompt makes an operation overflow."""
        return any(row.status is HuntStatus.REFUTED for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for ``json.dumps``."""
        return plain(self)
