"""Views, copies, joins and look-ups: elements that are elsewhere, the same numbers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.bounds.forms import Image, Known, Masked, Named, Rotated, Shares, Wave
from precheck.measure.bounds.patterns import at, classes_of, flattened, groups_of
from precheck.measure.trace.flow import Value, leaves

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.bounds.forms import Form
    from precheck.measure.bounds.step import Step


_RESHAPES = frozenset({"aten.view", "aten._unsafe_view", "aten._reshape_alias"})
_FILLS = frozenset({"aten.scatter", "aten.constant_pad_nd"})
"""Elsewhere than the input's elements they put a number of their own."""


def viewed(step: Step) -> Known | None:
    """A view or a copy of one tensor: it is run on all that is known of that."""
    tensor = step.known[0]

    def move(part: Tensor) -> Tensor:
        if step.op.name in _RESHAPES:
            return part.reshape(step.shape)  # its strides are not those of the traced tensor

        def put(leaf: Any) -> Any:
            if isinstance(leaf, Value):
                return leaf.constant
            return part if leaf is tensor else leaf

        return run(step, put)

    if tensor.numbers is not None and step.takes_some_rows:
        # which ones depends on the text: any of them
        dims = tuple(step.changed_dims(tensor.shape))
        bound = tensor.largest_along(dims, keepdim=True)
        return Known(magnitudes=bound.expand(step.shape), is_nonnegative=tensor.is_nonnegative)
    others = [leaf for leaf in leaves((step.args, step.kwargs)) if isinstance(leaf, Value)]
    if any(other.constant is None for other in others):
        return None  # where its elements are from depends on numbers that are not known
    if step.op.name in _FILLS:
        return None if "reduce" in step.kwargs else Known(magnitudes=move(tensor.bound).abs())
    return tensor.moved(move)


def run(step: Step, put: Any) -> Tensor:
    """The operation itself, over something else than it was traced with."""
    args = tuple(_replaced(arg, put) for arg in step.args)
    kwargs = {
        name: arg
        for name, arg in step.kwargs.items()
        if name not in {"dtype", "device", "layout", "pin_memory", "memory_format"}
    }
    made: Any = step.op.func(*args, **kwargs)
    result: Tensor = made[step.place] if isinstance(made, list | tuple) else made
    return result


def _replaced(arg: Any, put: Any) -> Any:
    return [put(leaf) for leaf in arg] if isinstance(arg, list | tuple) else put(arg)


def joined(step: Step) -> Known | None:
    """``cat`` and ``stack``."""
    tensors = [one for one in step.known if one.bound.numel()]

    def join(parts: list[Tensor]) -> Tensor:
        left = iter(parts)
        by_tensor = {id(tensor): part for tensor, part in zip(tensors, left, strict=True)}

        def put(leaf: Any) -> Any:
            return by_tensor.get(id(leaf), leaf)

        listed = [put(leaf) for leaf in step.args[0] if id(leaf) in by_tensor]
        together: Tensor = step.op.func(listed, *step.args[1:], **step.kwargs)
        return together

    if len({id(one) for one in tensors}) != len(tensors):  # the same one twice
        tensors = [replace(one) for one in tensors]
        places = iter(tensors)
        step = replace(step, args=([next(places) for _ in tensors], *step.args[1:]))
    bound = join([one.bound for one in tensors])
    forms = [one.form for one in tensors]
    return Known(
        magnitudes=bound,
        form=_joined_form(forms, join),
        is_nonnegative=all(one.is_nonnegative for one in tensors),
    )


def _joined_form(forms: list[Form | None], join: Any) -> Form | None:
    if any(isinstance(form, Masked) for form in forms):
        return Masked()
    images = [form for form in forms if isinstance(form, Image)]
    if len(images) == len(forms):
        return _joined_images(images, join)
    turned = [_as_rotated(form) for form in forms if isinstance(form, Image | Rotated)]
    if len(turned) == len(forms):
        return _joined_rotated(turned, join)
    return _joined_marks(forms, join)


def _joined_marks(forms: list[Form | None], join: Any) -> Form | None:
    """Of what is only told apart: angles, and their cosines."""
    named = [form for form in forms if isinstance(form, Named)]
    if len(named) == len(forms):
        return Named(element=join([form.element for form in named]))
    waves = [form for form in forms if isinstance(form, Wave)]
    kinds = {(form.is_sine, form.factor) for form in waves}
    if len(waves) == len(forms) and len(kinds) == 1:
        return replace(waves[0], angle=join([form.angle for form in waves]))
    return None


def _joined_rotated(forms: list[Rotated], join: Any) -> Rotated | None:
    firsts = _joined_images([form.first for form in forms], join)
    seconds = _joined_images([form.second for form in forms], join)
    if firsts is None or seconds is None:
        return None
    return Rotated(
        first=firsts,
        second=seconds,
        angle=join([form.angle for form in forms]),
        error=join([form.error for form in forms]),
    )


def _joined_images(images: list[Image], join: Any) -> Image | None:
    first = images[0]
    if any(one.rows is not first.rows or one.growth != first.growth for one in images):
        return None
    return replace(
        first,
        index=join([one.index for one in images]),
        token=join([one.token for one in images]),
        scale=join([one.scale for one in images]),
        offset=join([one.offset for one in images]),
        error=join([one.error for one in images]),
    )


def _as_rotated(form: Image | Rotated) -> Rotated:
    """An image as one that is turned by nothing."""
    if isinstance(form, Rotated):
        return form
    zeros = torch.zeros_like(form.scale)
    return Rotated(
        first=replace(form, error=zeros),
        second=replace(form, scale=zeros, offset=zeros, error=zeros),
        angle=torch.zeros_like(form.index),
        error=form.error,
    )


def looked_up(step: Step) -> Known | None:
    """Rows of a table, by numbers that are not known: any of them."""
    table = step.known[0]
    rows = table.largest_along((0,))
    return Known(magnitudes=rows.expand(step.shape), is_nonnegative=table.is_nonnegative)


def picked(step: Step) -> Known:
    """Elements by indices that are not known: any of them, lane by lane where these stay last."""
    tensor = step.known[0]
    bound = tensor.bound
    indices = step.args[1] if len(step.args) > 1 else None
    keeps_lanes = isinstance(indices, list | tuple) and len(indices) < bound.dim()
    largest = bound.amax(tuple(range(bound.dim() - 1))) if keeps_lanes and bound.dim() > 1 else None
    if largest is None or step.shape[-1:] != tuple(largest.shape):
        largest = bound.max()
    elif isinstance(tensor.form, Image):
        image = _any_row(tensor.form, step.shape)
        if image is not None:
            return Known(magnitudes=largest.expand(step.shape), form=image)
    is_masked = isinstance(tensor.form, Masked)
    return Known(
        magnitudes=largest.expand(step.shape),
        form=Masked() if is_masked else None,
        is_nonnegative=tensor.is_nonnegative,
    )


def _any_row(image: Image, shape: tuple[int, ...]) -> Image | None:
    """Rows of an image that has the same forms in each, over other vectors: which is not known."""
    rows = flattened(image, -1)
    firsts, _ = classes_of(rows.index, rows.scale, rows.offset, rows.error)
    if len(firsts) > 1 or bool(groups_of(rows.token).any()):
        return None
    token = torch.arange(math.prod(shape[:-1])).reshape(*shape[:-1], 1)
    one = at(rows, 0).moved(lambda part: part.expand(shape))
    return replace(one, rows=replace(image.rows, ball=object()), token=token.expand(shape))


def sorted_out(step: Step) -> Known:
    """``topk``, ``sort``, ``amax``: some elements along a dimension."""
    tensor = step.known[0]
    form, least = tensor.form, 0.0
    if isinstance(form, Shares) and step.op.name == "aten.topk" and _takes_last(step, tensor):
        least = max(form.sums()[0], 0.0) / form.size
    return step.bounded(
        float(tensor.bound.max()), is_nonnegative=tensor.is_nonnegative, least_largest=least
    )


def _takes_last(step: Step, tensor: Known) -> bool:
    """Whether it takes the largest elements along the last dimension."""
    is_largest = step.kwargs.get("largest", step.args[3] if len(step.args) > 3 else True)  # noqa: PLR2004
    return step.number(2, "dim", -1.0) in {-1.0, tensor.rank - 1.0} and bool(is_largest)
