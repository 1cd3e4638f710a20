"""What a hunt is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.measure.hunt.targets import Target
    from precheck.records.mechanism import Mechanism


@dataclass(frozen=True, slots=True, kw_only=True)
class HuntRequest:
    """The options of a hunt."""

    dtype: Dtype = Dtype.FLOAT16
    """Of 16 bits: what is to overflow."""
    minutes: float = 5.0
    """Of the search; the scans before and after it come on top."""
    most_tokens: int | None = None
    """To run, all inputs together; None: as many as there is time for."""
    mechanisms: tuple[Mechanism, ...] = ()
    """Only these; empty: all."""
    seed: int = 0
    ends_at_first: bool = False
    """End when a prompt exceeds the range of the dtype."""
    is_quick: bool = False
    """Compare with one short batch of built-in probes instead of all."""
    device: str = "auto"
    max_memory: int | None = None
    """Bytes that a scan may use."""
    revision: str | None = None
    trust_remote_code: bool = False

    def is_aim(self, target: Target) -> bool:
        """Whether the worst is searched for of an operation."""
        return not self.mechanisms or target.mechanism in self.mechanisms
