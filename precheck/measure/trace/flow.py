"""The data flow of a forward: its operations and what each reads, traced without weights.

Tensors are fake (shapes and dtypes, no numbers), so a model of any size is traced in a second. A
forward that branches on numbers cannot be traced.
"""

from __future__ import annotations

import logging
import sys
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch._subclasses.fake_tensor import (  # its only spelling
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.errors import UntraceableError, first_line
from precheck.measure.blame.unit_call import logits_in
from precheck.measure.models.attention import attention_of
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.tokens import with_decoder_input
from precheck.measure.subject.token_inputs import decoder_start
from precheck.measure.trace.known_numbers import KnownNumbers, NumbersInLists
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.segment import match_key, next_ordinal
from precheck.measure.watch.source_line import source_line
from precheck.measure.watch.trees import mapped, tensors_in
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor
    from torch._ops import OpOverload

_ROWS, _LENGTH = 2, 8
"""Shape of the traced batch; a model scales a token the same however many there are."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Value:
    """A tensor of the trace: everything but its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: int
    """The same for views of one another."""
    parameter: str | None = None
    """Its name in the model, if it is a parameter."""
    buffer: str | None = None
    """Its name in the model, if it is a buffer."""
    constant: Tensor | None = None
    """Its numbers, where code writes them out: the ``[-1]`` of ``qkv[:, :, [-1]]``."""

    @property
    def is_number(self) -> bool:
        """Whether it holds real or complex numbers."""
        return self.dtype.is_floating_point or self.dtype.is_complex


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FlowOp:
    """One operation, with a ``Value`` for each tensor among its arguments."""

    name: str
    """ATen name without overload."""
    func: OpOverload
    is_view: bool
    module: str
    ordinal: int
    """How often the same operation ran in the module before."""
    filename: str
    line: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    """The tensors it reads, in order."""
    outputs: tuple[Value, ...]

    @property
    def scalars(self) -> list[float]:
        """The numbers among its arguments, in order."""
        found = leaves((self.args, self.kwargs))
        return [x for x in found if isinstance(x, int | float) and not isinstance(x, bool)]

    @property
    def key(self) -> tuple[str, str, int]:
        """What matches the operation in a run."""
        return match_key(self.module, self.name, self.ordinal)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flow:
    """One forward after another, over the same parameters."""

    ops: tuple[FlowOp, ...]
    results: tuple[Value, ...]
    """Of each forward the logits, or the first tensor of a model that has none."""

    @property
    def parameters(self) -> frozenset[str]:
        """Names of the parameters that an operation reads."""
        return frozenset(
            value.parameter for op in self.ops for value in op.inputs if value.parameter is not None
        )


def trace_flow(skeleton: Skeleton, batches: Sequence[Batch]) -> Flow:
    """The data flow of a model; its parameters are replaced, so it cannot be used afterwards.

    Args:
        skeleton: a model in bfloat16, which every fake kernel knows. Its parameters may be on
            ``meta``.
        batches: what to call it with, one after the other.

    Raises:
        UntraceableError: the forward branches on numbers that are not known, or torch has no fake
            kernel for one of its operations.
    """
    with FakeModel(skeleton.model) as model:
        results = []
        for batch in batches:
            output = model.call(partial(skeleton.forward, batch))
            logits = logits_in(output, skeleton.vocab_size)
            results.append(next(iter(tensors_in(output))) if logits is None else logits)
        return model.flow(results)


class FakeModel:
    """A model whose tensors have shapes and no numbers; it cannot be used afterwards.

    Used as a context manager. Operations of all calls are recorded in one flow.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        self._recorder = _Recorder(ModuleStack(model), KnownNumbers(self._mode))

    def __enter__(self) -> Self:
        with self._mode, torch.no_grad():
            _make_parameters_fake(self._model, self._recorder)
        return self

    def __exit__(self, *_: object) -> None:
        self._recorder.stack.detach()

    def call(self, function: Callable[[], Any]) -> Any:
        """What the function returns, with fake tensors in it.

        Raises:
            UntraceableError: it asks for a number that is not known, or fails.
        """
        self._recorder.begin()
        try:
            with (
                self._mode,
                torch.no_grad(),
                _no_fake_kernel_log(),
                self._recorder,
                NumbersInLists(),
            ):
                return function()
        except Exception as error:
            raise UntraceableError(
                f"the data flow of {type(self._model).__name__} cannot be traced: {_reason(error)}"
            ) from error

    def flow(self, results: Sequence[Tensor]) -> Flow:
        """What was recorded, and what it came to."""
        return Flow(
            ops=tuple(self._recorder.ops), results=tuple(map(self._recorder.value, results))
        )


def leaves(tree: Any) -> Iterator[Any]:
    """The elements of nested tuples, lists and dicts, in order."""
    if isinstance(tree, tuple | list | dict):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)
    else:
        yield tree


class _Recorder(TorchDispatchMode):
    """Records every operation."""

    def __init__(self, stack: ModuleStack, known: KnownNumbers) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack = stack
        self._known = known
        self.ops: list[FlowOp] = []
        self._values: dict[int, tuple[Value, Tensor]] = {}
        """By the identity of a tensor; the tensor is kept so that no other one gets it."""
        self._ordinals: dict[tuple[str, str], int] = {}
        """Counts how often an operation ran in a module, as runs do."""

    def begin(self) -> None:
        """Begins another forward."""
        self._ordinals = {}

    def value(self, tensor: Tensor) -> Value:
        """The ``Value`` of a tensor."""
        if id(tensor) not in self._values:
            value = Value(
                shape=tuple(tensor.shape),
                dtype=tensor.dtype,
                storage=tensor.untyped_storage()._cdata,  # noqa: SLF001  its only spelling
                constant=getattr(tensor, "constant", None),
            )
            self._values[id(tensor)] = (value, tensor)
        return self._values[id(tensor)][0]

    def name_buffer(self, buffer: Tensor, name: str) -> None:
        """Records that the tensor is the model's buffer of that name."""
        self._values[id(buffer)] = (replace(self.value(buffer), buffer=name), buffer)

    def name_parameter(self, parameter: Tensor, name: str) -> None:
        """Records that the tensor is the model's parameter of that name."""
        value = replace(self.value(parameter), parameter=name)
        self._values[id(parameter)] = (value, parameter)

    def __torch_dispatch__(
        self, func: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # thousands of times, and computes nothing
            return func(*args)
        value_args, value_kwargs = mapped(args, self.value), mapped(kwargs, self.value)
        output = self._known.run(func, args, kwargs)
        outputs = list(tensors_in(output))
        if outputs:
            self._record(func, value_args, value_kwargs, outputs)
        return output

    def _record(self, func: OpOverload, args: Any, kwargs: Any, outputs: list[Tensor]) -> None:
        kind, module = op_kind(func), self.stack.names[-1]
        filename, line = source_line(sys._getframe(2))  # noqa: SLF001  inspect.stack reads files
        self.ops.append(
            FlowOp(
                name=kind.name,
                func=func,
                is_view=kind.is_view,
                module=module,
                ordinal=next_ordinal(self._ordinals, module, kind.name),
                filename=filename,
                line=line,
                args=args,
                kwargs=kwargs,
                inputs=tuple(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Value)),
                outputs=tuple(map(self.value, outputs)),
            )
        )


def _make_parameters_fake(model: nn.Module, recorder: _Recorder) -> None:
    """Replaces every parameter by a fake one on the CPU; tied ones stay tied."""
    fakes: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():  # noqa: SLF001  setattr would register
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                fakes[id(parameter)] = nn.Parameter(empty, requires_grad=False)
                recorder.name_parameter(fakes[id(parameter)], f"{path}.{key}" if path else key)
            module._parameters[key] = fakes[id(parameter)]  # noqa: SLF001
        for key, buffer in module._buffers.items():  # noqa: SLF001
            if buffer is None:
                continue
            made = torch.empty(buffer.shape, dtype=buffer.dtype) if buffer.is_meta else buffer
            module._buffers[key] = made  # noqa: SLF001
            recorder.name_buffer(made, f"{path}.{key}" if path else key)


def traceable(model: nn.Module) -> Skeleton:
    """A model in bfloat16 as it is traced, with the attention implementation that it has."""
    attn = attention_of(model)
    return Skeleton(
        configuration=Configuration(dtype=Dtype.BFLOAT16, attn_implementation=attn),
        model=model,
        requested_attn_implementation=attn,
        parameters=Parameters.of(model),
    )


def traced_batches(skeleton: Skeleton, media: Sequence[Batch] = ()) -> list[Batch]:
    """What a model is traced with: a text, if it takes text alone, and the media."""
    takes_text = "input_ids" in skeleton.accepts or not media
    return [*([text_batch(skeleton)] if takes_text else []), *media]


def text_batch(skeleton: Skeleton, *, length: int = _LENGTH) -> Batch:
    """A text of one token, over and over."""
    probes = tuple(
        Probe(name=f"row {row}", kind="token_ids", num_tokens=length) for row in range(_ROWS)
    )
    batch = Batch(probes=probes, input_ids=torch.zeros((_ROWS, length), dtype=torch.int64))
    if not skeleton.is_encoder_decoder:
        return batch
    return with_decoder_input(batch, start_id=decoder_start(skeleton.model))


@contextmanager
def _no_fake_kernel_log() -> Iterator[None]:
    """Torch logs an error of a fake kernel before it raises it."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = was_disabled


def _reason(error: Exception) -> str:
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"{error.func} makes it depend on values"
    return first_line(error)
