"""What two reports differ in."""

from __future__ import annotations

from dataclasses import dataclass

from precheck.records.finding import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not the same in both."""

    what: str
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The second report compared with the first."""

    explanations: tuple[str, ...]
    """What most likely explains it, likeliest first."""
    model: tuple[Change, ...]
    """Identity, weights and what was requested."""
    environment: tuple[Change, ...]
    """Versions, devices, arithmetic."""
    runs: tuple[Change, ...] = ()
    """Verdicts, figures, and runs that only one of them has."""
    layers: tuple[Change, ...] = ()
    """Of each run that both have, the first layer that differs, and how many do."""
    values: tuple[Change, ...] = ()
    """Largest values of operations, the largest difference first."""
    gone: tuple[Finding, ...] = ()
    """Findings that only the first has."""
    new: tuple[Finding, ...] = ()
    """Findings that only the second has."""
    advice: tuple[Change, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether they say the same; versions of libraries and devices do not count by themselves.

        A report from another machine with the same verdicts, figures and findings is the same.
        """
        return not (
            self.model
            or self.runs
            or self.layers
            or self.values
            or self.gone
            or self.new
            or self.advice
        )
