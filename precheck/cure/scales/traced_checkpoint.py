"""The scales of a checkpoint's model, traced without weights, and the tensors they belong to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.quiet import quiet_transformers
from precheck.cure.scales.blocks import parameter_changes
from precheck.cure.scales.config_numbers import ConfigNumber, config_numbers, find_settings
from precheck.cure.scales.equations import find_scales
from precheck.cure.scales.stored_changes import first_names, source_changes
from precheck.errors import UntraceableError
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.model_dtypes import kept_in_float32
from precheck.measure.models.skeleton import Skeleton, twin
from precheck.measure.models.ties import declared_ties, tie
from precheck.measure.trace.flow import trace_flow, traceable, traced_batches
from precheck.measure.watch.peaks import Wanted
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.cure.scales.forms import Scales, Unknown
    from precheck.measure.models.conversion import Conversion
    from precheck.measure.probes.batch import Batch
    from precheck.measure.trace.flow import Flow
    from precheck.records.outcomes.fix import TensorChange


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCheckpoint:
    """A model without weights: its scales, and how stored tensors become its parameters."""

    scales: Scales
    conversions: dict[str, tuple[Conversion, ...]]
    """By parameter, every conversion that gives it; a tied one may be stored twice."""
    model: nn.Module
    """Its parameters have no values."""
    unread: tuple[str, ...] = ()
    """Parameters that no operation of the trace reads."""

    def stored_changes(
        self, exponents: Mapping[Unknown, int], stored: Weights
    ) -> dict[str, tuple[TensorChange, ...]]:
        """What to multiply in each stored tensor, so that the parameters have these exponents."""
        stored_changes: dict[str, tuple[TensorChange, ...]] = {}
        changes_by_name = parameter_changes(exponents, self.scales.partitions)
        for name, changes in changes_by_name.items():
            stored_changes |= self.source_changes(name, changes, stored)
        return stored_changes

    def source_changes(
        self, name: str, changes: Sequence[TensorChange], stored: Weights
    ) -> dict[str, tuple[TensorChange, ...]]:
        """The changes of a parameter as changes of the stored tensors that it is made of."""
        found: dict[str, tuple[TensorChange, ...]] = {}
        for conversion in self.conversions.get(name, ()):
            found |= (
                {conversion.sources[0]: tuple(changes)}
                if conversion.converter is None
                else source_changes(conversion, name, changes, stored, self.model)
            )
        return found


def trace_checkpoint(
    checkpoint: Checkpoint,
    stored: Weights,
    *,
    dtype: Dtype,
    attn_implementation: str,
    with_whole_numbers: bool,
    media: Sequence[Batch] = (),
) -> TracedCheckpoint:
    """The equations of a checkpoint's model, as it runs in a 16-bit dtype.

    Args:
        checkpoint: its config and class.
        stored: its tensors, of which only the headers are read.
        dtype: the dtype that it is to run in.
        attn_implementation: the attention implementation that it runs with.
        with_whole_numbers: let integers of the config change too. Most are sizes and counts, and
            each takes one more trace: seconds in all for a model of 28 layers.
        media: what it takes besides text.

    Raises:
        UntraceableError: its forward branches on numbers.
    """
    model = _model(checkpoint, stored, dtype, attn_implementation)
    conversions = _conversions_by_parameter(model, stored)
    shapes = _shapes(model)
    flow = trace_flow(*_inputs(twin(model), media))
    changed: dict[ConfigNumber, Flow] = {}
    for number in config_numbers(checkpoint.config):
        if number.is_whole and not with_whole_numbers:
            continue
        try:
            other = replace(checkpoint, config=number.perturbed(checkpoint.config))
            other_model = _model(other, stored, dtype, attn_implementation)
            if _shapes(other_model) == shapes:
                changed[number] = trace_flow(*_inputs(other_model, media))
        except Exception:  # noqa: BLE001, S112  a class may refuse such a number: then it stays
            continue
    settings = find_settings(flow, changed)
    scales = find_scales(flow, settings=settings, dtype=torch.bfloat16)
    return TracedCheckpoint(
        scales=scales,
        conversions=conversions,
        model=model,
        unread=tuple(name for name, _ in model.named_parameters() if name not in flow.parameters),
    )


def wanted_of(
    checkpoint: Checkpoint, stored: Weights, *, dtype: Dtype, media: Sequence[Batch]
) -> Wanted:
    """What has to be measured to choose exponents: results by lane, and epsilons.

    Nothing for a model that cannot be traced.
    """
    try:
        flow = trace_flow(*_inputs(_model(checkpoint, stored, dtype, None), media))
    except UntraceableError:
        return Wanted()
    scales = find_scales(flow, settings={}, dtype=torch.bfloat16)
    return Wanted(
        shapes={
            result.key: tuple(result.elements.shape)
            for result in scales.results
            if result.elements is not None
        },
        epsilons={
            equation.epsilon.key: equation.epsilon.value
            for equation in scales.equations
            if equation.epsilon is not None
        },
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Sizes and counts show in the shapes of what a model holds; other numbers do not."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _model(
    checkpoint: Checkpoint, stored: Weights, dtype: Dtype, attn_implementation: str | None
) -> nn.Module:
    """The model in bfloat16, which every fake kernel knows.

    Parameters that stay in float32 when the model is loaded in ``dtype`` are in float32 here too.
    """
    with quiet_transformers():
        model, _ = empty_model(
            checkpoint, stored, Dtype.BFLOAT16, attn_implementation=attn_implementation
        )
    # a copy that the config ties is read by some engines and not by others: one unknown for both
    tie(model, declared_ties(model))
    kept = kept_in_float32(model, dtype)
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = parameter.data.float()
    return model


def _inputs(model: nn.Module, media: Sequence[Batch]) -> tuple[Skeleton, list[Batch]]:
    """The model, and what it is traced with."""
    skeleton = traceable(model)
    return skeleton, traced_batches(skeleton, media)


def _conversions_by_parameter(
    model: nn.Module, stored: Weights
) -> dict[str, tuple[Conversion, ...]]:
    first = first_names(model)
    conversions: defaultdict[str, list[Conversion]] = defaultdict(list)
    for conversion in find_conversions(model, stored):
        for target in conversion.parameter_names(model, stored):
            if target in first:
                conversions[first[target]].append(conversion)
    return {name: tuple(several) for name, several in conversions.items()}
