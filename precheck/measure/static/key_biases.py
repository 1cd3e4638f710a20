"""What projections add to keys, from the checkpoint: the part of a bias that arrives there.

A bias may belong to keys alone, or to a projection that makes queries, keys and values together.
Each element of its result is followed to the product of queries and keys, by the rules of
``precheck.measure.bounds``: what arrives there, turned by positions or not, belongs to keys. Behind
a norm of keys nothing arrives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.bounds.forms import Image, Known, Rotated, Rows
from precheck.measure.bounds.interpreter import Interpreter
from precheck.measure.trace.flow import Flow
from precheck.measure.trace.stream import leading_to
from precheck.records.sizes import KeyBias, KeyValueRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.static.traced_layers import TracedLayers
    from precheck.measure.trace.flow import FlowOp, Value
    from precheck.measure.trace.stream import TracedLayer

_ADDITIONS = frozenset({"aten.addmm", "aten.add", "aten.add_", "aten.linear"})
"""What adds a bias."""


class _Reaching(NamedTuple):
    """A bias of a traced layer, and which part of it keys have."""

    bias: str
    """Its name in the layer."""
    module: str
    """Where scores are computed, in the layer."""
    element: Tensor
    """Which element each channel of each head has, ``(heads, lanes)``, int64."""
    scale: Tensor
    """What it is multiplied by on the way, of the same shape."""
    own: Tensor
    """Every such element once."""


def key_biases(
    traced: TracedLayers, layout: Architecture, vectors: Mapping[str, Tensor]
) -> tuple[KeyValueRange, ...]:
    """A row for each attention whose keys have a bias, without the figures that a run would give.

    Args:
        traced: the model's decoder layers.
        layout: the model's units.
        vectors: stored tensors of one dimension, by the model's names, float32 on the CPU.
    """
    rows = []
    for layer, indices in zip(traced.layers, traced.short.members, strict=True):
        for reaching in _reaching(traced, layer, vectors):
            rows += [
                _row(f"{traced.path}.{index}", index, reaching, layout, vectors)
                for index in indices
                if f"{traced.path}.{index}.{reaching.bias}" in vectors
            ]
    return tuple(sorted(rows, key=lambda row: row.layer or 0))


def _reaching(
    traced: TracedLayers, layer: TracedLayer, vectors: Mapping[str, Tensor]
) -> Iterator[_Reaching]:
    """The biases of a layer that keys have."""
    flow = traced.forward.flow
    parameters = flow.parameters
    for place, _ in layer.scores:
        product = flow.ops[place]
        keys = [value for value in product.inputs if value.is_number][-1]
        for before in leading_to(flow, [place], unknown=(), ends=layer.carried):
            op = flow.ops[before]
            bias = _bias(op, layer, vectors)
            if bias is None:
                continue
            made = op.outputs[0]
            places = leading_to(flow, [place], unknown=parameters, ends={*layer.carried, made})
            image = _image_at(keys, made, traced, places)
            if image is not None:
                element = image.index[..., 0]
                yield _Reaching(
                    bias=bias.removeprefix(f"{layer.path}."),
                    module=product.module.removeprefix(f"{layer.path}."),
                    element=element,
                    scale=image.scale[..., 0].abs(),
                    own=element.unique(),
                )


def _bias(op: FlowOp, layer: TracedLayer, vectors: Mapping[str, Tensor]) -> str | None:
    """The name of the vector that an operation adds to each row of its result."""
    if op.name not in _ADDITIONS:
        return None
    for value in op.inputs:
        name = value.parameter
        if name is not None and name.startswith(f"{layer.path}.") and name in vectors:
            return name if value.shape == op.outputs[0].shape[-1:] else None
    return None


def _image_at(
    keys: Value, made: Value, traced: TracedLayers, places: Sequence[int]
) -> Image | None:
    """The channels of a projection's result, as far as keys are made of nothing else."""
    forward, width = traced.forward, made.shape[-1]
    interpreter = Interpreter(
        Flow(ops=tuple(forward.flow.ops[place] for place in places), results=()),
        grows=forward.grows,
        varies=frozenset(),
        numbers_of=lambda _: None,
    )
    interpreter.assume(made, _channels(made.shape))
    interpreter.advance(len(places) - 1)
    form = interpreter.known_of(keys).form
    image = form.first if isinstance(form, Rotated) else form
    if not isinstance(image, Image) or image.rows.matrix is not None:
        return None
    return image if image.rows.size == width else None


def _channels(shape: tuple[int, ...]) -> Known:
    """Elements of a vector for each token, each of them told apart."""
    zeros = torch.zeros((), dtype=torch.float64).expand(shape)
    tokens = torch.arange(torch.Size(shape[:-1]).numel()).reshape(*shape[:-1], 1)
    image = Image(
        rows=Rows(size=shape[-1], radius=1.0),
        index=torch.arange(shape[-1]).expand(shape),
        token=tokens.expand(shape),
        scale=zeros + 1.0,
        offset=zeros,
        error=zeros,
    )
    return Known(magnitudes=image.bound, form=image)


def _row(
    path: str,
    index: int,
    reaching: _Reaching,
    layout: Architecture,
    vectors: Mapping[str, Tensor],
) -> KeyValueRange:
    name = f"{path}.{reaching.bias}"
    heads = vectors[name][reaching.element] * reaching.scale
    own = vectors[name][reaching.own]
    module = f"{path}.{reaching.module}"
    return KeyValueRange(
        layer=index,
        section=layout.section_of(module),
        module=module,
        query=None,
        projected_key=None,
        key=None,
        value=None,
        head_dim=reaching.element.shape[-1],
        is_key_normalised=False,
        key_bias=KeyBias(
            name=name,
            abs_max=float(own.abs().max()),
            norm=float(own.norm()),
            head_norm=float(heads.norm(dim=-1).max()),
        ),
    )
