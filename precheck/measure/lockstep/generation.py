"""Decodes with the cache in every run: what a user would read, and where it parts or breaks.

Every run calls the model's own ``generate`` in a thread of its own, and all advance unit by unit as
in a scan, so that each weight is read once a token for all of them. A watch rides along: after a
few tokens a run has taken another way than its reference, so an operation is judged by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import first_line
from precheck.measure.blame.live import Watch
from precheck.measure.lockstep.fatal import raise_if_fatal
from precheck.measure.lockstep.turns import Worker, advance
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.watch.float16_sums import Float16Sums
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.records.precision import Accumulation, Arithmetic
from precheck.records.traces import GREEDY, SAMPLED, Generation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.traces import Overflow


@dataclass(slots=True, eq=False, kw_only=True)
class Decoded:
    """What one run wrote in one way."""

    way: str
    tokens: list[int] = field(default_factory=list)
    overflow: Overflow | None = None
    broken_step: int | None = None
    error: str | None = None


def generate(
    batch: Batch,
    groups: Sequence[RunGroup],
    *,
    num_tokens: int,
    weights: SharedModels,
    layout: Architecture,
    decode: Decode,
) -> list[tuple[Generation, ...]]:
    """Greedy and sampled decoding of one prompt in every run, in the order of the groups.

    Args:
        batch: one probe, on the runs' device.
        groups: runs by attention implementation, the float32 run of each first.
        num_tokens: tokens to write, if none of them ends the text.
        weights: give the parameters.
        layout: the model's units.
        decode: token ids to text.

    Raises:
        PrecheckError: the weights cannot be read, or memory ran out.
    """
    skeletons = [each.another() for group in groups for each in group.skeletons]
    passengers: list[_Writer] = []
    workers: list[Worker] = []
    for skeleton in skeletons:
        worker = Worker(
            name=str(skeleton.dtype),
            model=skeleton.model,
            units=layout.units,
            presence=weights.presence(skeleton),
        )
        worker.passenger = _Writer(skeleton, batch, num_tokens, check=worker.turns.check)
        passengers.append(worker.passenger)
        workers.append(worker)
    # sampling seeds torch's own generator; the caller's stays where it is
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        advance(workers, _Together())
    written = iter(passengers)
    return [
        each
        for group in groups
        for each in _compared([next(written) for _ in group.skeletons], batch, decode)
    ]


def _compared(writers: list[_Writer], batch: Batch, decode: Decode) -> list[tuple[Generation, ...]]:
    """Every run of a group beside its reference, which is the first."""
    return [
        tuple(
            _generation(ours, theirs, batch, decode)
            for ours, theirs in zip(each.written, writers[0].written, strict=False)
        )
        for each in writers
    ]


def _generation(ours: Decoded, theirs: Decoded, batch: Batch, decode: Decode) -> Generation:
    name, overflow = batch.probes[0].name, ours.overflow
    if overflow is not None:
        positions = [(name, each) for each in overflow.first_positions.values()]
        overflow = replace(overflow, probes=(name,), first_positions=dict(positions))
    return Generation(
        probe=name,
        way=ours.way,
        text=decode(ours.tokens) if ours.tokens else None,
        num_tokens=len(ours.tokens),
        first_difference=_first_difference(ours.tokens, theirs.tokens),
        broken_step=ours.broken_step,
        overflow=overflow,
        error=ours.error,
    )


def _first_difference(ours: list[int], theirs: list[int]) -> int | None:
    """Index of the first token that is another one, or that only one of them has."""
    for index, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            return index
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))


class _Writer:
    """One run's decoding, as what rides on a worker."""

    is_replaying = False

    def __init__(
        self, skeleton: Skeleton, batch: Batch, num_tokens: int, *, check: Callable[[], None]
    ) -> None:
        self.written: list[Decoded] = []
        self._skeleton = skeleton
        self._batch = batch
        self._num_tokens = num_tokens
        self._check = check

    def forward(self) -> None:
        """Both ways, one after the other."""
        for way in (GREEDY, SAMPLED):
            self.written.append(self._write(way))

    def enter_unit(self, _unit: Unit, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Leaves where all are given up."""
        self._check()

    def leave_unit(self, _unit: Unit, _output: Any) -> None:
        """Nothing to do."""

    def skips(self, _unit: Unit) -> bool:
        """None is left out: what was written so far is what counts."""
        return False

    def _write(self, way: str) -> Decoded:
        written = Decoded(way=way)
        model: Any = self._skeleton.model
        inputs = self._skeleton.inputs(self._batch)
        for each in ("use_cache", "decoder_input_ids"):
            inputs.pop(each, None)
        drawing = _Drawing()
        products, parameters = _products(self._skeleton), self._skeleton.parameters
        with Watch(model, products=products, parameters=parameters) as watch:
            try:
                result = model.generate(
                    **inputs,
                    max_new_tokens=self._num_tokens,
                    do_sample=way == SAMPLED,
                    num_beams=1,
                    logits_processor=LogitsProcessorList([drawing]),
                )
                written.tokens = result[0, drawing.num_before :].tolist()
            except Exception as error:  # noqa: BLE001  what sampling raises is to be seen
                raise_if_fatal(error)
                written.error = f"{type(error).__name__}: {first_line(error)}"
                written.tokens = drawing.tokens
            written.overflow, written.broken_step = watch.first_overflow, watch.broken_forward
        return written


class _Drawing(LogitsProcessor):
    """Sees the tokens before each next one is drawn, and seeds the drawing.

    All runs draw with the same random numbers, whatever other threads drew meanwhile.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        """Those written, also where the next cannot be drawn."""
        self.num_before: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores as they are."""
        if self.num_before is None:
            self.num_before = input_ids.shape[1]
        self.tokens = input_ids[0, self.num_before :].tolist()
        torch.manual_seed(SEED + input_ids.shape[1])
        return scores


def _products(skeleton: Skeleton) -> RoundedProducts | Float16Sums | None:
    """What computes matrix products, as in the scan."""
    if skeleton.configuration.accumulation is Accumulation.FLOAT16:
        return Float16Sums()
    if skeleton.arithmetic is Arithmetic.NATIVE:
        return None
    return RoundedProducts(torch_dtype(skeleton.dtype))


class _Together:
    """All runs in the order they were made in; an error that concerns all ends them all."""

    def order(self, standing: list[Worker]) -> list[Worker]:
        """The workers in the order of their turns."""
        return standing

    def before(self, worker: Worker) -> None:
        """Nothing to do."""

    def after(self, worker: Worker) -> None:
        """Gives up where weights or memory are gone."""
        if worker.error is not None:
            raise_if_fatal(worker.error)
