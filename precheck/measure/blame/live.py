"""Watches a live model while it generates or serves, and names the first operation that breaks.

Idea. There is no reference here, so an operation is judged by itself: it makes NaN or inf out of
finite inputs, and writes no mask. While a decoder layer runs, a dispatch mode records the inputs
and the output of every operation. When the layer is over, one reduction of its output says whether
it is finite. Only if it is not are the operations examined one by one. A healthy layer costs one
reduction and the recording, which is dropped at its end. Watching ends with the first fault:
everything after it is NaN.

Assumptions. One thread runs the model at a time. A layer's outputs all fit in memory together
(about 150 kB a token in a 7 B model).

What it cannot see: an overflow that does not leave its layer (absorbed), and inside kernels.
"""

from __future__ import annotations

import math
import sys
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from precheck.checkpoint.architecture import find_architecture
from precheck.errors import UsageError
from precheck.measure.blame.live_examination import BrokenStretch, RecordedOp, TokenPositions
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.blame.unit_call import hidden_states_in, logits_in, main_output
from precheck.measure.machine.torch_settings import uncompiled
from precheck.measure.watch.module_stack import Hook, ModuleStack
from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.source_line import source_line
from precheck.measure.watch.trees import copied, tensors_in
from precheck.records.quantities import counted

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.watch.float16_sums import Float16Sums
    from precheck.measure.watch.rounded_products import RoundedProducts
    from precheck.records.traces import Overflow


_NOTHING: dict[str, Any] = {}
_NOWHERE = ("", 0)

_OVERWRITING = frozenset({"aten.add_", "aten.mul_", "aten.div_", "aten.masked_fill_"})
"""Operations whose inputs are copied first; others that overwrite (a cache) only move data."""


class _Recorder(TorchDispatchMode):
    """Records the operations since the last decoder layer."""

    def __init__(self, stack: ModuleStack, products: RoundedProducts | Float16Sums | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[RecordedOp] = []
        self._stack = stack
        self._products = products

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the wrapper that keeps the compiler out would cost more than the handler itself."""
        return False

    def __torch_dispatch__(
        self, func: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kind = op_kind(func)
        inputs = copied(args) if kind.overwrites and kind.name in _OVERWRITING else args
        products = self._products
        if products is not None and products.applies_to(
            kind.name, list(tensors_in((args, kwargs)))
        ):
            output = products.compute(func, args, kwargs or {})
        else:
            output = func(*args, **kwargs) if kwargs else func(*args)
        # a view is never reported, so its line is not needed
        source = _NOWHERE if kind.is_view else source_line(sys._getframe(1))  # noqa: SLF001
        self.ops.append(
            RecordedOp(func, inputs, kwargs or _NOTHING, output, self._stack.names[-1], source)
        )
        return output


class Watch:
    """Names the first operation that breaks while your model runs.

    A context manager: its hooks exist only inside the ``with`` block, even after an exception.
    Inside it, code that ``torch.compile`` compiled runs uncompiled.

    Args:
        model: a transformers model, or any module whose layers are in one list.
        sample_every: watch one forward in this many, for serving; of a fault that starts between
            two watched forwards, only the consequences are found.
        products: computes matrix products where the device has no arithmetic for the dtype.
        parameters: those of ``model``, kept up to date where they are loaded and dropped.

    Raises:
        UsageError: ``sample_every`` is not positive.
        UnsupportedModelError: no decoder layers were found.

    Example:
        ``with precheck.watch(model) as watch: model.generate(**inputs)``, then
        ``watch.first_overflow``
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sample_every: int = 1,
        products: RoundedProducts | Float16Sums | None = None,
        parameters: Parameters | None = None,
    ) -> None:
        if sample_every < 1:
            raise UsageError(
                f"sample_every is {sample_every} (expected a positive number)",
                hint="1 watches every forward",
            )
        self._model = model
        self._sample_every = sample_every
        self._products = products
        self._layout = find_architecture(model)
        self._parameters = parameters or Parameters(model.named_parameters())
        self._classifier = Classifier()
        self._attached: _Attached | None = None
        self._uncompiled = ExitStack()
        self._overflows: tuple[Overflow, ...] = ()
        self._num_forwards = 0
        self._num_watched = 0
        self._broken_forward: int | None = None
        self._is_origin = True

    def __repr__(self) -> str:
        """In a line: the model, how much was watched, and what broke."""
        overflow = self.first_overflow
        found = "no overflow"
        if overflow is not None:
            found = f"{overflow.event} in {overflow.module!r}, {overflow.op} at {overflow.source}"
        forwards = counted(self._num_watched, "forward")
        return f"<precheck watch on {type(self._model).__name__}: {forwards} watched, {found}>"

    @property
    def first_overflow(self) -> Overflow | None:
        """The first operation that broke: module, operation, source line, mechanism.

        Its ``reference_abs_max`` is None (there is no float32 run), its ``probes`` are the rows of
        the batch, and ``first_positions`` counts the real tokens of each row from its start.
        """
        return next(iter(self._overflows), None)

    @property
    def overflows(self) -> tuple[Overflow, ...]:
        """All operations that broke in the same decoder layer."""
        return self._overflows

    @property
    def is_origin(self) -> bool:
        """Whether the fault started there; a sampled watch may find only its consequences."""
        return self._is_origin

    @property
    def broken_forward(self) -> int | None:
        """Which forward broke, from 0 (the prompt); None if none has so far."""
        return self._broken_forward

    @property
    def num_forwards(self) -> int:
        """Forwards that started inside the ``with`` block."""
        return self._num_forwards

    def __enter__(self) -> Self:
        self._uncompiled.enter_context(uncompiled())
        self._attached = _Attached(
            self._model,
            layout=self._layout,
            should_watch=self._should_watch,
            report=self._report,
            products=self._products,
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._attached is not None:
            self._attached.detach()
            self._attached = None
        self._uncompiled.close()

    def _should_watch(self, *, is_whole: bool) -> bool:
        """Whether to watch the forward that begins, of the whole model or of its encoder."""
        if not is_whole:
            return not self._overflows
        number, self._num_forwards = self._num_forwards, self._num_forwards + 1
        is_watched = not self._overflows and number % self._sample_every == 0
        self._num_watched += is_watched
        return is_watched

    def _report(self, stretch: BrokenStretch) -> None:
        """Names what broke in a stretch of the forward whose result is not finite."""
        self._overflows, self._is_origin = stretch.overflows(self._parameters, self._classifier)
        self._broken_forward = max(0, self._num_forwards - 1)


class _Attached:
    """Hooks on a model, and a mode that records the operations of the layer that is running.

    Args:
        model: whose forwards are watched.
        layout: its layers.
        should_watch: called when a forward begins.
        report: called with a stretch whose result is not finite.
        products: computes matrix products, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Architecture,
        should_watch: Callable[..., bool],
        report: Callable[[BrokenStretch], None],
        products: RoundedProducts | Float16Sums | None,
    ) -> None:
        self._model = model
        self._layout = layout
        self._should_watch = should_watch
        self._report = report
        self._positions = TokenPositions(mask=None, num_before=0)
        self._depth = 0
        """Forwards that are running: an encoder's inside the model's, or before it."""
        self._is_running = False
        self._is_broken = False
        self._suspect: BrokenStretch | None = None
        """The first stretch whose output was not finite somewhere."""
        self._stack = ModuleStack(model)
        self._recorder = _Recorder(self._stack, products)
        self._handles = [
            model.get_submodule(unit.name).register_forward_hook(
                Hook(partial(self._end_block, unit, index)),
                with_kwargs=True,
                prepend=True,  # while weights that come and go are still there
            )
            for index, unit in enumerate(layout.blocks)
        ]
        # generate() calls an encoder by itself, before the first forward of the model
        for root in {id(module): module for module in (model, _encoder_of(model))}.values():
            self._handles += [
                root.register_forward_pre_hook(Hook(self._begin_forward), with_kwargs=True),
                root.register_forward_hook(Hook(self._end_forward), always_call=True),
            ]

    def detach(self) -> None:
        """Removes the mode and the hooks."""
        self._stop()
        self._stack.detach()
        for handle in self._handles:
            handle.remove()

    def _begin_forward(self, root: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1 and self._should_watch(is_whole=root is self._model):
            self._positions = TokenPositions.of(kwargs)
            self._is_running = True
            self._recorder.__enter__()  # type: ignore[no-untyped-call]

    def _end_forward(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        if self._is_running and output is not None:
            logits = logits_in(output, None)
            last = main_output(list(tensors_in(output))) if logits is None else logits
            if last is not None:
                self._check(last, None, None, ())
        self._stop()

    def _stop(self) -> None:
        if self._is_running:
            self._recorder.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self._is_running = self._is_broken = False
        self._suspect = None
        self._recorder.ops = []

    def _end_block(
        self,
        unit: Unit,
        index: int,
        _: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        if not self._is_running:
            return
        hidden = main_output(list(tensors_in(output)))
        if hidden is not None:
            self._check(hidden, unit, index, (args, kwargs))
        self._recorder.ops = []

    def _check(
        self, output: Tensor, unit: Unit | None, index: int | None, arguments: tuple[Any, ...]
    ) -> None:
        """Reports the operations since the last layer if their result is not finite."""
        if self._is_broken:
            return
        with _disable_current_modes(), torch.no_grad():
            low, high = torch.aminmax(output)
            if math.isfinite(float(low)) and math.isfinite(float(high)):
                return
            real_tokens = self._positions.real_tokens(output)
            stretch = BrokenStretch(
                ops=self._recorder.ops,
                hidden=hidden_states_in(list(tensors_in(arguments))),
                unit=unit,
                index=index,
                layout=self._layout,
                real_tokens=real_tokens,
                positions=self._positions,
            )
            # a fault at padding reaches real tokens a layer later, if at all
            self._suspect = self._suspect or stretch
            if bool(real_tokens.tokens(output).isfinite().all()):
                return
            self._is_broken = True
            self._report(self._suspect)


def _encoder_of(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder model; any other model itself."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return model
    encoder = getattr(model, "get_encoder", lambda: None)()
    return encoder if isinstance(encoder, nn.Module) else model
