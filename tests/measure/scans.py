"""Scans of tiny checkpoints, and what their runs really computed."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.lockstep.passage import Passage
from precheck.pipeline import scan
from tests.planted import FAULTS, PlantedFault, planted_checkpoint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

    from precheck.measure.blame.unit_call import UnitCall
    from precheck.measure.lockstep.segments import LocatedSegment
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.report import Report, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run over one batch: every decoder layer's output in order, and the model's."""

    skeleton: Skeleton
    batch: Batch
    layers: list[tuple[str, Tensor]] = field(default_factory=list)
    final: list[Tensor] = field(default_factory=list)

    @property
    def configuration(self) -> tuple[str, str]:
        return str(self.skeleton.dtype), self.skeleton.attn_implementation


@contextmanager
def passes() -> Iterator[list[Pass]]:
    """Collects every pass of the scans inside, without changing them."""
    by_passage: dict[Passage, Pass] = {}
    compare, finish = Passage._compare, Passage._finish  # noqa: SLF001

    def pass_of(passage: Passage) -> Pass:
        new = Pass(skeleton=passage.skeleton, batch=passage.batch)
        return by_passage.setdefault(passage, new)

    def recording_compare(passage: Passage, call: UnitCall, located: LocatedSegment) -> None:
        if call.unit.is_block and call.hidden_states is not None:
            pass_of(passage).layers.append((call.unit.name, call.hidden_states.clone()))
        compare(passage, call, located)

    def recording_finish(passage: Passage, *, has_logits: bool) -> None:
        if passage.final is not None:
            pass_of(passage).final.append(passage.final.clone())
        finish(passage, has_logits=has_logits)

    result: list[Pass] = []
    Passage._compare = recording_compare  # type: ignore[method-assign,assignment]  # noqa: SLF001
    Passage._finish = recording_finish  # type: ignore[method-assign,assignment]  # noqa: SLF001
    try:
        yield result
    finally:
        Passage._compare, Passage._finish = compare, finish  # type: ignore[method-assign]  # noqa: SLF001
        result += by_passage.values()


def plain_inputs(batch: Batch) -> dict[str, Any]:
    """What a user would call ``forward`` with."""
    inputs: dict[str, Any] = {"input_ids": batch.input_ids}
    if batch.attention_mask is not None:
        inputs["attention_mask"] = batch.attention_mask
    if batch.decoder_input_ids is not None:
        inputs["decoder_input_ids"] = batch.decoder_input_ids
    return inputs


def plain_pass(
    model: PreTrainedModel, batch: Batch, layer_names: list[str]
) -> tuple[list[tuple[str, Tensor]], Tensor]:
    """The same layers' outputs and the logits, from the model's own forward with plain hooks."""
    layers: list[tuple[str, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            layers.append((name, (output[0] if isinstance(output, tuple) else output).clone()))

        return hook

    handles = [
        model.get_submodule(name).register_forward_hook(keep(name))
        for name in dict.fromkeys(layer_names)
    ]
    try:
        with torch.no_grad():
            # the signature, not the code: forwards are decorated
            is_decoder = "use_cache" in inspect.signature(type(model).forward).parameters
            options = {"use_cache": False} if is_decoder else {}
            logits = model(**plain_inputs(batch), **options).logits
    finally:
        for handle in handles:
            handle.remove()
    return layers, logits


def fault_named(name: str) -> PlantedFault:
    """The fault of the catalogue."""
    return next(fault for fault in FAULTS if fault.name == name)


def scan_of(fault: PlantedFault, folder: Path, **options: Any) -> Report:
    """The scan of the planted checkpoint in the configuration that shows the fault.

    A fault that needs padding is scanned with the built-in probes of a tokenizer, any other with
    one short batch.
    """
    planted_checkpoint(fault, folder, tokenizer=fault.left_padded)
    options.setdefault("quick", not fault.left_padded)
    return scan(
        folder,
        dtypes=[fault.dtype],
        attn_implementations=[fault.attn_implementation],
        **options,
    )


def run_of(report: Report, dtype: str, attn_implementation: str) -> Run:
    """The run of this configuration."""
    (run,) = (
        run
        for run in report.runs
        if (run.dtype, run.attn_implementation) == (dtype, attn_implementation)
    )
    return run


def faulty_run(report: Report, fault: PlantedFault) -> Run:
    """The run in which the fault shows."""
    return run_of(report, fault.dtype, fault.attn_implementation)
