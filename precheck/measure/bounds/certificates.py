"""Certificates of all runs, computed while their weights are in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

from precheck.errors import UntraceableError, first_line
from precheck.measure.bounds.interpreter import Interpreter
from precheck.measure.bounds.lengths import trace_any_length
from precheck.measure.bounds.pairs import Refinement
from precheck.measure.bounds.shared import SharedResults
from precheck.measure.watch.segment import OpPlace, place_of
from precheck.records.outcomes.every_prompt import MOST_OPEN, OpenOperation, RunProof

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from precheck.measure.bounds.interpreter import BoundedOp
    from precheck.measure.bounds.lengths import TracedForward
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.trace.flow import FlowOp
    from precheck.records.configuration import Configuration
    from precheck.records.precision import Dtype

ASSUMPTIONS = (
    "text only: images, sounds and inputs_embeds are not bounded",
    "matrix products, sums and fused norms accumulate in float32 or wider",
    "fused attention computes scores and softmax in float32, and rounds its shares once",
    "every token attends to at least one key, of at most 2^20",
    "a fused LayerNorm subtracts the mean and divides by the deviation of the same numbers",
    "subnormal numbers are rounded, not flushed",
)
"""What the bounds take for granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunBounds:
    """What is known of one run; plain data."""

    bounds: dict[OpPlace, float] = field(default_factory=dict)
    """What each operation does not exceed; infinite where nothing is known."""
    proof: RunProof


class Certificates:
    """The certificates of the plain 16-bit runs of a scan.

    Args:
        skeletons: the runs, before any of them is hooked.
        minutes: for better bounds where one does not fit, over all runs.
    """

    def __init__(self, skeletons: Iterable[Skeleton], *, minutes: float = 0.0) -> None:
        refinement = Refinement(minutes)
        self._of: dict[Configuration, _Certificate] = {}
        traced: dict[str, TracedForward] = {}
        shared: defaultdict[Dtype, SharedResults] = defaultdict(SharedResults)
        for skeleton in skeletons:
            configuration = skeleton.configuration
            if configuration.dtype.is_half and configuration.is_plain:
                certificate = _Certificate(
                    skeleton,
                    shared=shared[configuration.dtype],
                    like=traced.get(configuration.attn_implementation),
                    refinement=refinement,
                )
                self._of[configuration] = certificate
                if certificate.traced is not None:
                    traced[configuration.attn_implementation] = certificate.traced

    def enter(self, skeleton: Skeleton, unit: str) -> None:
        """Bounds what a run does up to the end of a unit, whose parameters are in memory."""
        certificate = self._of.get(skeleton.configuration)
        if certificate is not None:
            certificate.advance(skeleton.model, unit)

    def finished(self) -> dict[Configuration, RunBounds]:
        """What is known of each run."""
        return {
            configuration: certificate.finished() for configuration, certificate in self._of.items()
        }


class _Certificate:
    """The bounds of one run, as far as they are computed."""

    def __init__(
        self,
        skeleton: Skeleton,
        *,
        shared: SharedResults,
        like: TracedForward | None,
        refinement: Refinement,
    ) -> None:
        self.traced: TracedForward | None = None
        self._shared = shared
        self._failure: str | None = None
        self._interpreter: Interpreter | None = None
        self._model: nn.Module | None = None
        self._ends: dict[str, int] = {}
        try:
            traced = self.traced = trace_any_length(skeleton, like=like)
        except UntraceableError as error:
            self._failure = error.message
            return
        self._ends = _ends(traced)
        self._interpreter = Interpreter(
            traced.flow,
            grows=traced.grows,
            varies=traced.varies,
            numbers_of=self._number,
            shared=shared,
            refinement=refinement,
        )

    def _number(self, name: str) -> Tensor | None:
        """A parameter or a buffer of the unit that is in memory."""
        if self._model is None:
            return None
        path, _, key = name.rpartition(".")
        tensor: Tensor = getattr(self._model.get_submodule(path), key)
        return None if tensor.is_meta else tensor.detach().cpu()

    def advance(self, model: nn.Module, unit: str) -> None:
        """Bounds all operations up to the last one of a unit."""
        if self._interpreter is None or unit not in self._ends:
            return
        self._model = model
        self._shared.enter(unit)
        self._run(self._ends.pop(unit))
        self._model = None

    def _run(self, place: int | None) -> None:
        if self._interpreter is None:
            return
        try:
            self._interpreter.advance(place)
        except Exception as error:  # noqa: BLE001  a scan goes on without bounds
            self._failure = f"{type(error).__name__}: {first_line(error)}"
            self._interpreter = None

    def finished(self) -> RunBounds:
        """What is known of the run; operations whose parameters never came are unbounded."""
        self._run(None)
        if self._interpreter is None:
            proof = RunProof(num_operations=0, num_proved=0, failure=self._failure)
            return RunBounds(proof=proof)
        ops = self._interpreter.bounded
        opened = [one for one in ops if not one.is_proved]
        bounds: dict[OpPlace, float] = {}
        for one in ops:
            place = _place(one)
            bounds[place] = max(one.bound, bounds.get(place, 0.0))
        return RunBounds(
            bounds=bounds,
            proof=RunProof(
                num_operations=len(ops),
                num_proved=len(ops) - len(opened),
                open_operations=tuple(_open(one) for one in opened[:MOST_OPEN]),
                assumptions=ASSUMPTIONS,
            ),
        )


def _ends(traced: TracedForward) -> dict[str, int]:
    """The place after the last operation inside each module."""
    ends: dict[str, int] = {}
    for place, op in enumerate(traced.flow.ops):
        parts = op.module.split(".")
        for length in range(1, len(parts) + 1):
            ends[".".join(parts[:length])] = place + 1
    return ends


def _place(one: BoundedOp) -> OpPlace:
    op = one.op
    return place_of(module=op.module, op=op.name, ordinal=op.ordinal, source=_source(op))


def _source(op: FlowOp) -> str:
    return f"{PurePath(op.filename).name}:{op.line}"


def _open(one: BoundedOp) -> OpenOperation:
    return OpenOperation(
        module=one.op.module,
        op=one.op.name,
        source=_source(one.op),
        bound_abs_max=one.bound if math.isfinite(one.bound) else None,
    )
