"""A checkpoint's model without its weights: how it may be rescaled, and what is stored where."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.quiet import quiet_transformers
from precheck.cure.scales.equations import find_scales
from precheck.cure.scales.flow import trace_flow
from precheck.cure.scales.forms import Kind
from precheck.cure.scales.settings import ConfigNumber, config_numbers, find_settings
from precheck.errors import UntraceableError
from precheck.measure.models.attention import attention_of
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.model_dtypes import kept_in_float32
from precheck.measure.models.skeleton import Skeleton, twin
from precheck.measure.subject.token_ids import decoder_start
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
    """What is known of a model before its weights are read."""

    scales: Scales
    recipes: dict[str, tuple[Conversion, ...]]
    """By parameter, every way in which stored tensors make it; tied ones may be stored twice."""
    model: nn.Module
    """Its parameters have no values."""

    def stored_changes(
        self, exponents: Mapping[Unknown, int], stored: Weights
    ) -> dict[str, tuple[TensorChange, ...]]:
        """What to do with which stored tensor, so that the parameters are multiplied so.

        Raises:
            UntraceableError: a stored tensor ends up in parts that are multiplied by
                different powers.
        """
        by_parameter: defaultdict[str, list[TensorChange]] = defaultdict(list)
        for unknown, power in exponents.items():
            if unknown.kind is not Kind.SETTING:
                by_parameter[unknown.name].append(_change(unknown, power))
        found: dict[str, tuple[TensorChange, ...]] = {}
        for name, changes in by_parameter.items():
            for recipe in self.recipes[name]:
                found |= _of_recipe(recipe, name, changes, stored, self.model)
        return found


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
        stored: its tensors, of which the headers are read.
        dtype: what it runs in.
        attn_implementation: what it runs with.
        with_whole_numbers: let whole numbers of the config change too. Most are sizes and counts,
            and each is one trace more: seconds in all of a model of 28 layers.

    Raises:
        UntraceableError: what its forward does depends on numbers.
    """
    model = _model(checkpoint, stored, dtype, attn_implementation)
    recipes = _recipes(model, stored)
    shapes = _shapes(model)
    flow = _flow(twin(model))
    changed: dict[ConfigNumber, Flow] = {}
    for number in config_numbers(checkpoint.config):
        if number.is_whole and not with_whole_numbers:
            continue
        try:
            other = replace(checkpoint, config=number.changed(checkpoint.config))
            changed_model = _model(other, stored, dtype, attn_implementation)
            if _shapes(changed_model) == shapes:
                changed[number] = _flow(changed_model)
        except Exception:  # noqa: BLE001, S112  a class may refuse such a number: then it stays
            continue
    settings = find_settings(flow, changed)
    scales = find_scales(flow, settings=settings, dtype=torch.bfloat16)
    return TracedCheckpoint(scales=scales, recipes=recipes, model=model)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Sizes and counts show in what is there; other numbers do not."""
    return {name: tuple(each.shape) for name, each in model.state_dict().items()}


def _model(
    checkpoint: Checkpoint, stored: Weights, dtype: Dtype, attn_implementation: str
) -> nn.Module:
    """In bfloat16, which every fake kernel knows, but for what stays in float32 in ``dtype``."""
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


def _recipes(model: nn.Module, stored: Weights) -> dict[str, tuple[Conversion, ...]]:
    first = _first_names(model)
    found: defaultdict[str, list[Conversion]] = defaultdict(list)
    for recipe in find_conversions(model, stored):
        for target in recipe.parameter_names(model, stored):
            if target in first:
                found[first[target]].append(recipe)
    return {name: tuple(each) for name, each in found.items()}


def _first_names(model: nn.Module) -> dict[str, str]:
    """By each name of a parameter the first one that the model has for it; tied ones have two."""
    first = {id(each): name for name, each in model.named_parameters()}
    everything = model.named_parameters(remove_duplicate=False)
    return {name: first[id(each)] for name, each in everything}


def _change(unknown: Unknown, power: int) -> TensorChange:
    return TensorChange(
        power=power,
        dim=unknown.dim,
        start=unknown.start,
        stop=unknown.stop,
        shift=unknown.shift if unknown.kind is Kind.SHIFTED_WEIGHT else None,
    )


def _of_recipe(
    recipe: Conversion,
    name: str,
    changes: list[TensorChange],
    stored: Weights,
    model: nn.Module,
) -> dict[str, tuple[TensorChange, ...]]:
    if recipe.converter is None:
        return {recipe.sources[0]: tuple(changes)}
    cuts_last = any(each.stop is not None and each.dim == -1 for each in changes)
    places = _places(recipe, name, stored, model, is_thin=not cuts_last)
    found: dict[str, tuple[TensorChange, ...]] = {}
    for number, source in enumerate(recipe.sources):
        mine = places == number
        powers = {(each.power, each.shift) for each in changes if bool(_part(mine, each).any())}
        covered = sum(int(_part(mine, each).sum()) for each in changes)
        if not powers:
            continue
        if len(powers) > 1 or covered != int(mine.sum()):
            raise UntraceableError(
                f"{source!r} is stored as one tensor, and parts of it would be multiplied by "
                "different powers of two"
            )
        ((power, shift),) = powers
        found[source] = (TensorChange(power=power, shift=shift),)
    return found


def _places(
    recipe: Conversion, name: str, stored: Weights, model: nn.Module, *, is_thin: bool
) -> Tensor:
    """Which source each place of a parameter comes from: what the converter makes of numbers.

    A thin matrix is one column wide, for parameters that are cut along other dimensions.
    """
    numbered = []
    for number, source in enumerate(recipe.sources):
        shape = stored.shape(source)
        thin = (*shape[:-1], 1) if is_thin and len(shape) > 1 else shape
        numbered.append(torch.full(thin, number, dtype=torch.int32))
    made = recipe.convert(numbered, model)
    first = _first_names(model)
    return next(each for target, each in made.items() if first[target] == name)


def _part(mine: Tensor, change: TensorChange) -> Tensor:
    if change.stop is None:
        return mine
    return mine.narrow(change.dim, change.start, change.stop - change.start)
