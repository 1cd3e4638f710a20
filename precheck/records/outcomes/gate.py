"""What the gate says: PASS, FAIL or INCOMPLETE, and why, for each configuration on each device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.records.configuration import Configuration
    from precheck.records.finding import Verdict


class Outcome(StrEnum):
    """The first word of the gate's line."""

    PASS = "PASS"  # noqa: S105  the word that is printed
    FAIL = "FAIL"
    INCOMPLETE = "INCOMPLETE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A configuration as it would be deployed on one device."""

    configuration: Configuration
    device: str | None
    """None for the processor that the scan ran on, which needs no name."""
    verdict: Verdict | None
    """Measured, or documented where nothing was run; None where nothing is known."""
    holds: bool
    """Whether the gate passes it."""
    words: str
    """What is said of it behind its name: ``overflows in layer 3: ...``."""
    note: str = ""
    """What becomes of its formats on the device, where that is not what was measured."""

    @property
    def name(self) -> str:
        """``float16 + sdpa on T4``."""
        return f"{self.configuration}{f' on {self.device}' if self.device else ''}"

    @property
    def sentence(self) -> str:
        """Name and what is said of it."""
        return f"{self.name} {self.words}{f'; {self.note}' if self.note else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The answer behind the exit code."""

    outcome: Outcome
    reasons: tuple[str, ...]
    deployments: tuple[Deployment, ...] = ()
    """What was judged: what is required, else what a plain load would give."""

    @property
    def holds(self) -> bool:
        """Whether it passes."""
        return self.outcome is Outcome.PASS

    @property
    def line(self) -> str:
        """``PASS: bfloat16 + sdpa is safe``."""
        return f"{self.outcome}: {'; '.join(self.reasons)}"
