"""The scales of a checkpoint's model, traced without weights, and the tensors they belong to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.quiet import quiet_transformers
from precheck.cure.scales.config_numbers import ConfigNumber, config_numbers, find_settings
from precheck.cure.scales.equations import find_scales
from precheck.cure.scales.flow import trace_flow
from precheck.cure.scales.forms import Kind
from precheck.errors import UntraceableError
from precheck.measure.models.attention import attention_of
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.model_dtypes import kept_in_float32
from precheck.measure.models.skeleton import Skeleton, twin
from precheck.measure.subject.token_inputs import decoder_start
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.fix import TensorChange
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.cure.scales.flow import Flow
    from precheck.cure.scales.forms import Scales, Unknown
    from precheck.measure.models.conversion import Conversion


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCheckpoint:
    """A model without weights: its scales, and how stored tensors become its parameters."""

    scales: Scales
    conversions: dict[str, tuple[Conversion, ...]]
    """By parameter, every conversion that gives it; a tied one may be stored twice."""
    model: nn.Module
    """Its parameters have no values."""

    def stored_changes(
        self, exponents: Mapping[Unknown, int], stored: Weights
    ) -> dict[str, tuple[TensorChange, ...]]:
        """What to multiply in each stored tensor, so that the parameters have these exponents.

        Raises:
            UntraceableError: a stored tensor ends up in parts of parameters that have different
                exponents.
        """
        by_parameter: defaultdict[str, list[TensorChange]] = defaultdict(list)
        for unknown, power in exponents.items():
            if unknown.kind is not Kind.SETTING:
                by_parameter[unknown.name].append(_change(unknown, power))
        stored_changes: dict[str, tuple[TensorChange, ...]] = {}
        for name, changes in by_parameter.items():
            for conversion in self.conversions[name]:
                stored_changes |= _source_changes(conversion, name, changes, stored, self.model)
        return stored_changes


def trace_checkpoint(
    checkpoint: Checkpoint,
    stored: Weights,
    *,
    dtype: Dtype,
    attn_implementation: str,
    with_whole_numbers: bool,
) -> TracedCheckpoint:
    """The equations of a checkpoint's model, as it runs in a 16-bit dtype.

    Args:
        checkpoint: its config and class.
        stored: its tensors, of which only the headers are read.
        dtype: the dtype that it is to run in.
        attn_implementation: the attention implementation that it runs with.
        with_whole_numbers: let integers of the config change too. Most are sizes and counts, and
            each takes one more trace: seconds in all for a model of 28 layers.

    Raises:
        UntraceableError: its forward branches on numbers.
    """
    model = _model(checkpoint, stored, dtype, attn_implementation)
    conversions = _conversions_by_parameter(model, stored)
    shapes = _shapes(model)
    flow = _flow(twin(model))
    changed: dict[ConfigNumber, Flow] = {}
    for number in config_numbers(checkpoint.config):
        if number.is_whole and not with_whole_numbers:
            continue
        try:
            other = replace(checkpoint, config=number.perturbed(checkpoint.config))
            other_model = _model(other, stored, dtype, attn_implementation)
            if _shapes(other_model) == shapes:
                changed[number] = _flow(other_model)
        except Exception:  # noqa: BLE001, S112  a class may refuse such a number: then it stays
            continue
    settings = find_settings(flow, changed)
    scales = find_scales(flow, settings=settings, dtype=torch.bfloat16)
    return TracedCheckpoint(scales=scales, conversions=conversions, model=model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Sizes and counts show in the shapes of what a model holds; other numbers do not."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _model(
    checkpoint: Checkpoint, stored: Weights, dtype: Dtype, attn_implementation: str
) -> nn.Module:
    """The model in bfloat16, which every fake kernel knows.

    Parameters that stay in float32 when the model is loaded in ``dtype`` are in float32 here too.
    """
    with quiet_transformers():
        model, _ = empty_model(
            checkpoint, stored, Dtype.BFLOAT16, attn_implementation=attn_implementation
        )
    kept = kept_in_float32(model, dtype)
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = parameter.data.float()
    return model


def _flow(model: nn.Module) -> Flow:
    attn = attention_of(model)
    skeleton = Skeleton(
        configuration=Configuration(dtype=Dtype.BFLOAT16, attn_implementation=attn),
        model=model,
        requested_attn_implementation=attn,
        parameters=Parameters.of(model),
    )
    return trace_flow(skeleton, decoder_start=decoder_start(model))


def _conversions_by_parameter(
    model: nn.Module, stored: Weights
) -> dict[str, tuple[Conversion, ...]]:
    first_names = _first_names(model)
    conversions: defaultdict[str, list[Conversion]] = defaultdict(list)
    for conversion in find_conversions(model, stored):
        for target in conversion.parameter_names(model, stored):
            if target in first_names:
                conversions[first_names[target]].append(conversion)
    return {name: tuple(several) for name, several in conversions.items()}


def _first_names(model: nn.Module) -> dict[str, str]:
    """For each name of a parameter the first that the model has for it; tied ones have two."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in everything}


def _change(unknown: Unknown, power: int) -> TensorChange:
    return TensorChange(
        power=power,
        dim=unknown.dim,
        start=unknown.start,
        stop=unknown.stop,
        shift=unknown.shift if unknown.kind is Kind.SHIFTED_WEIGHT else None,
    )


def _source_changes(
    conversion: Conversion,
    name: str,
    changes: list[TensorChange],
    stored: Weights,
    model: nn.Module,
) -> dict[str, tuple[TensorChange, ...]]:
    """The changes of a parameter as changes of the tensors that it is made of."""
    if conversion.converter is None:
        return {conversion.sources[0]: tuple(changes)}
    divides_last = any(change.stop is not None and change.dim == -1 for change in changes)
    source_numbers = _source_numbers(conversion, name, stored, model, is_thin=not divides_last)
    source_changes: dict[str, tuple[TensorChange, ...]] = {}
    for number, source in enumerate(conversion.sources):
        is_from_source = source_numbers == number
        parts = [(change, _part(is_from_source, change)) for change in changes]
        powers = {(change.power, change.shift) for change, part in parts if bool(part.any())}
        num_covered = sum(int(part.sum()) for _, part in parts)
        if not powers:
            continue
        if len(powers) > 1 or num_covered != int(is_from_source.sum()):
            raise UntraceableError(
                f"{source!r} is stored as one tensor, and parts of it would be multiplied by "
                "different powers of two"
            )
        ((power, shift),) = powers
        source_changes[source] = (TensorChange(power=power, shift=shift),)
    return source_changes


def _source_numbers(
    conversion: Conversion, name: str, stored: Weights, model: nn.Module, *, is_thin: bool
) -> Tensor:
    """For each element of a parameter the number of the stored tensor that it comes from.

    The converter is run on tensors that are filled with their own number. A thin matrix is one
    column wide, for parameters that are divided along other dimensions.
    """
    numbered = []
    for number, source in enumerate(conversion.sources):
        shape = stored.shape(source)
        thin = (*shape[:-1], 1) if is_thin and len(shape) > 1 else shape
        numbered.append(torch.full(thin, number, dtype=torch.int32))
    parameters = conversion.convert(numbered, model)
    first = _first_names(model)
    return next(tensor for target, tensor in parameters.items() if first[target] == name)


def _part(tensor: Tensor, change: TensorChange) -> Tensor:
    if change.stop is None:
        return tensor
    return tensor.narrow(change.dim, change.start, change.stop - change.start)
