"""Tries to break bounds: real values of every operation of a model, against what they may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from precheck.measure.bounds.forms import Masked
from precheck.measure.bounds.interpreter import Interpreter
from precheck.measure.bounds.lengths import LENGTHS, trace_any_length
from precheck.measure.bounds.rounding import largest
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.op_kinds import CASTS
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.real_tokens import RealTokens
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from precheck.measure.bounds.forms import Known
    from precheck.measure.bounds.lengths import TracedForward
    from precheck.measure.watch.segment import OpNode

ROWS, LENGTH = 2, LENGTHS[0]
"""The shape of the trace, so that every element has a bound of its own."""


class Recording(Interpreter):
    """Keeps what is known of every result."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.by_key: dict[object, tuple[Tensor, bool]] = {}

    def _by_rule(self, step: Any) -> Known:
        known = super()._by_rule(step)
        if not step.place:
            key = _key(step.op.key, step.op.line, known.bound, step.dtype)
            bound, is_masked = known.bound, isinstance(known.form, Masked)
            if key in self.by_key:  # casts are not counted
                bound = torch.maximum(bound, self.by_key[key][0])
                is_masked = is_masked or self.by_key[key][1]
            self.by_key[key] = (bound, is_masked)
        return known


def _key(key: tuple[str, str, int], line: int, like: Tensor, dtype: torch.dtype) -> object:
    if key[1] not in CASTS:
        return key
    return (key[0], line, tuple(like.shape), dtype)


@dataclass(kw_only=True)
class Tried:
    """How many elements were compared, and which were too large."""

    num_elements: int = 0
    num_operations: int = 0
    num_proved: int = 0
    broken: list[str] = field(default_factory=list)


def skeleton_of(model: nn.Module, *, attn: str, dtype: Dtype = Dtype.FLOAT16) -> Skeleton:
    return Skeleton(
        configuration=Configuration(dtype=dtype, attn_implementation=attn),
        model=model,
        requested_attn_implementation=attn,
        parameters=Parameters.of(model),
    )


def interpreted(skeleton: Skeleton, traced: TracedForward | None = None) -> Recording:
    """All operations of a model, bounded."""
    traced = traced or trace_any_length(skeleton)
    numbers = dict(skeleton.model.named_parameters()) | dict(skeleton.model.named_buffers())
    recording = Recording(
        traced.flow, grows=traced.grows, varies=traced.varies, numbers_of=numbers.get
    )
    recording.advance()
    return recording


def try_model(
    skeleton: Skeleton,
    batches: Iterable[dict[str, Tensor]],
    traced: TracedForward | None = None,
) -> Tried:
    """Runs a model, and compares every element of every operation with its bound."""
    recording = interpreted(skeleton, traced)
    tried = Tried(
        num_operations=len(recording.bounded),
        num_proved=sum(one.is_proved for one in recording.bounded),
    )

    def compare(node: OpNode, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        values = outputs[0].detach().double().abs()
        found = recording.by_key.get(_key(node.key, node.line, values, outputs[0].dtype))
        numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
        if found is None or found[0].shape != values.shape:
            return
        if any(not bool(tensor.isfinite().all()) for tensor in numbers):
            return  # given finite inputs
        bound, is_masked = found
        limit = largest(outputs[0].dtype)
        allowed = torch.where(bound > limit, torch.inf, bound)
        if is_masked:
            values = torch.where(outputs[0] <= -1e4, 0.0, values)
        tried.num_elements += values.numel()
        excess = (values > allowed) | values.isnan() & (allowed < torch.inf)
        if bool(excess.any()):
            worst = float((values / allowed)[excess].max())
            tried.broken.append(f"{node.module} {node.op} {node.source}: {worst:.6g} times")

    for inputs in batches:
        _watch(skeleton, inputs, compare)
    return tried


def _watch(skeleton: Skeleton, inputs: dict[str, Tensor], compare: Any) -> None:
    stack = ModuleStack(skeleton.model)
    watcher = OpWatcher(
        stack=stack,
        parameters=skeleton.parameters,
        real_tokens=RealTokens(num_rows=ROWS, length=LENGTH, mask=None),
        check=lambda: None,
        on_op=compare,
    )
    try:
        with torch.no_grad(), watcher:
            skeleton.model(**inputs)
    finally:
        watcher.end()
        stack.detach()


def texts(skeleton: Skeleton, *, num: int, seed: int) -> list[dict[str, Tensor]]:
    """Random ids, and one token over and over, as the model takes them."""
    generator = torch.Generator().manual_seed(seed)
    most = min(skeleton.vocab_size or 16, 64)
    batches = []
    for index in range(num):
        ids = torch.randint(3, most, (ROWS, LENGTH), generator=generator)
        if index % 3 == 2:
            ids = ids[:, :1].expand(ROWS, LENGTH).contiguous()
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if skeleton.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        if "use_cache" in skeleton.accepts:
            inputs["use_cache"] = False  # type: ignore[assignment]
        batches.append(inputs)
    return batches


def enlarged(model: nn.Module, *, factor: float, seed: int) -> None:
    """Multiplies every parameter by a random power of two up to a factor, its biases too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            size = float(torch.rand((), generator=generator)) * factor
            parameter.mul_(2.0**size)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05 * 2.0**size)
