"""The statistics kept of a tensor, and how two of them merge."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStats:
    """Counts and the largest finite magnitude of a set of elements.

    ``abs_max`` is None only when no element is finite (or there is none), so that one inf does
    not hide how large the rest was.
    """

    num_elements: int = 0
    num_nan: int = 0
    num_inf: int = 0
    abs_max: float | None = None

    @property
    def num_nonfinite(self) -> int:
        """How many elements are NaN or infinite."""
        return self.num_nan + self.num_inf

    def merge(self, other: TensorStats) -> TensorStats:
        """The statistics of both sets of elements together.

        >>> TensorStats(num_elements=2, abs_max=3.0).merge(TensorStats(num_elements=1, num_inf=1))
        TensorStats(num_elements=3, num_nan=0, num_inf=1, abs_max=3.0)
        """
        maxima = [maximum for maximum in (self.abs_max, other.abs_max) if maximum is not None]
        return TensorStats(
            num_elements=self.num_elements + other.num_elements,
            num_nan=self.num_nan + other.num_nan,
            num_inf=self.num_inf + other.num_inf,
            abs_max=max(maxima, default=None),
        )
