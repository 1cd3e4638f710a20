"""Reads parameters in a thread of its own, because a run's thread is watched."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor, nn

    from precheck.measure.models.conversion import Conversion
    from precheck.measure.models.streaming.load_units import LoadUnit
    from precheck.measure.models.streaming.parameter_reader import ParameterReader
    from precheck.records.precision import Dtype
    from precheck.records.stored import CheckpointAudit

_T = TypeVar("_T")


class BackgroundReader:
    """A parameter reader in the one thread that reads and casts.

    Each call waits for its result. Only reading ahead goes on while a run computes.
    """

    def __init__(self, reader: ParameterReader) -> None:
        self._reader = reader
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="precheck weights")
        self._following: dict[str, LoadUnit] = {}

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def plan(self, load_units: Sequence[LoadUnit], *, budget: int) -> None:
        """Sets the order in which load units are fetched, and the bytes that weights may take."""
        self._following = {unit.module: following for unit, following in pairwise(load_units)}
        self._reader.budget = budget

    def fetch(self, unit: LoadUnit, dtype: Dtype) -> dict[str, nn.Parameter]:
        """The whole parameters of a load unit, by name; starts to read the next unit's."""
        parameters = self._run(partial(self._reader.fetch, unit, dtype))
        following = self._following.get(unit.module)
        if following is not None:
            self._thread.submit(self._reader.read_ahead, following)
        return parameters

    def read_permanent(
        self, conversions: Iterable[Conversion], dtype: Dtype
    ) -> dict[str, nn.Parameter]:
        """Parameters and buffers that stay as long as the scan, by name."""
        return self._run(partial(self._reader.read_permanent, conversions, dtype))

    def rows(
        self, conversion: Conversion, dtype: Dtype, ids: Tensor
    ) -> tuple[Tensor, nn.Parameter, bool]:
        """Indices for ``ids``, the rows they index, and whether those are faulty."""
        return self._run(partial(self._reader.rows, conversion, dtype, ids))

    def part(self, conversion: Conversion, dtype: Dtype, rows: slice) -> tuple[nn.Parameter, bool]:
        """Rows of a parameter, valid until the next part is read, and whether they are faulty."""
        return self._run(partial(self._reader.part, conversion, dtype, rows))

    def is_faulty(self, name: str, dtype: Dtype) -> bool:
        """Whether a parameter is not finite in a dtype although it is in float32."""
        return self._reader.is_faulty(name, dtype)

    def disown(self, tensor: Tensor) -> None:
        """Leaves the memory of a tensor that a model returned to whoever holds it."""
        self._reader.disown(tensor)

    def vector(self, name: str) -> Tensor | None:
        """A stored parameter of one dimension; None if it was not read."""
        return self._run(partial(self._reader.vector, name))

    def audit(self, *, is_complete: bool) -> CheckpointAudit:
        """The audit of what was read so far, or of everything."""
        return self._run(partial(self._reader.audit, is_complete=is_complete))

    def _run(self, task: Callable[[], _T]) -> _T:
        def run_without_grad() -> _T:
            with torch.no_grad():  # grad mode belongs to a thread
                return task()

        return self._thread.submit(run_without_grad).result()
