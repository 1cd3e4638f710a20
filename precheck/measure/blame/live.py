"""Watches a live model while it generates or serves, and names the first operation that breaks.

Idea. There is no reference here, so an operation is judged by itself: it makes NaN or inf out of
finite inputs, and writes no mask. While a decoder layer runs, a dispatch mode keeps what every
operation was given and gave; when the layer is over, one reduction of its output says whether
anything is wrong. Only then are the operations looked at one by one. A healthy layer so costs one
reduction and the bookkeeping; what was kept is dropped at its end. Once something broke, watching
ends: everything after it is NaN.

Assumptions. One thread runs the model at a time. A layer's outputs all fit in memory together
(about 150 kB a token in a 7 B model).

What it cannot see: an overflow that does not leave its layer (absorbed), and inside kernels.
"""

from __future__ import annotations

import linecache
import math
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers.cache_utils import Cache

from precheck.checkpoint.architecture import find_architecture
from precheck.errors import UsageError
from precheck.measure.blame.examine import Examiner
from precheck.measure.blame.graph import Position
from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.blame.unit_call import hidden_states_in, logits_in, main_output
from precheck.measure.machine.environment import uncompiled
from precheck.measure.probes.batch import RealTokens
from precheck.measure.watch.module_stack import ModuleStack
from precheck.measure.watch.op_kinds import op_kind
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.source_line import source_line
from precheck.measure.watch.trees import copied, tensors_in
from precheck.records.traces import Mechanism, Overflow, Section

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.blame.examine import Producer
    from precheck.measure.watch.float16_sums import Float16Sums
    from precheck.measure.watch.rounded_products import RoundedProducts
    from precheck.measure.watch.segment import OpNode, Segment


_Ran = tuple["OpOverload", tuple[Any, ...], dict[str, Any], Any, str, tuple[str, int]]
"""An operation as it ran: arguments, result, module, and file and line."""

_NOTHING: dict[str, Any] = {}
_NOWHERE = ("", 0)

_OVERWRITING = frozenset({"aten.add_", "aten.mul_", "aten.div_", "aten.masked_fill_"})
"""Operations whose input is kept as it was; what else overwrites (a cache) only moves data."""


class _Recorder(TorchDispatchMode):
    """Keeps the operations since the last decoder layer."""

    def __init__(self, stack: ModuleStack, products: RoundedProducts | Float16Sums | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ran: list[_Ran] = []
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
        given = copied(args) if kind.overwrites and kind.name in _OVERWRITING else args
        products = self._products
        if products is not None and products.takes(kind.name, list(tensors_in((args, kwargs)))):
            output = products.compute(func, args, kwargs or {})
        else:
            output = func(*args, **kwargs) if kwargs else func(*args)
        # views are never named, so nobody asks where they stand
        source = _NOWHERE if kind.is_view else source_line(sys._getframe(1))  # noqa: SLF001
        self.ran.append((func, given, kwargs or _NOTHING, output, self._stack.names[-1], source))
        return output


class Watch:
    """Names the first operation that breaks while a model of yours runs.

    A context manager: hooks are there inside the ``with`` block alone, also after an exception.
    Inside it, what ``torch.compile`` has compiled runs uncompiled.

    Args:
        model: a transformers model, or any module whose layers stand in one list.
        sample_every: watch one forward of so many, for serving; of a fault that begins between
            two only the traces are found.
        products: computes matrix products where the device has no arithmetic for the dtype.
        weights: names of parameters by id, kept up to date where they come and go.

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
        weights: dict[int, str] | None = None,
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
        named = model.named_parameters()
        self._weights = {id(each): name for name, each in named} if weights is None else weights
        self._classifier = Classifier()
        self._attached: _Attached | None = None
        self._uncompiled = ExitStack()
        self._overflows: tuple[Overflow, ...] = ()
        self._num_forwards = 0
        self._broken_forward: int | None = None
        self._is_origin = True

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
        """Whether it began there; a sampled watch may only find what an earlier fault left."""
        return self._is_origin

    @property
    def broken_forward(self) -> int | None:
        """Which forward broke, from 0 (the prompt); None while none has."""
        return self._broken_forward

    @property
    def num_forwards(self) -> int:
        """Forwards that began inside the ``with`` block."""
        return self._num_forwards

    def __enter__(self) -> Self:
        self._uncompiled.enter_context(uncompiled())
        self._attached = _Attached(
            self._model,
            layout=self._layout,
            begins=self._begins,
            look_into=self._look_into,
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

    def _begins(self, *, is_whole: bool) -> bool:
        """Whether the forward that begins, of the whole model or its encoder, is to be watched."""
        if not is_whole:
            return not self._overflows
        number, self._num_forwards = self._num_forwards, self._num_forwards + 1
        return not self._overflows and number % self._sample_every == 0

    def _look_into(self, segment: _Kept) -> None:
        """Names what broke in a stretch of the forward whose result is not finite."""
        self._overflows, self._is_origin = segment.overflows(self._weights, self._classifier)
        self._broken_forward = max(0, self._num_forwards - 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Positions:
    """Which positions of a forward are real tokens, and how many tokens came before them."""

    mask: Tensor | None
    """``(batch, everything so far)`` bool."""
    num_before: int

    @classmethod
    def of(cls, kwargs: dict[str, Any]) -> _Positions:
        """From what the model is called with."""
        mask = kwargs.get("attention_mask")
        is_plain = isinstance(mask, torch.Tensor) and mask.dim() == 2  # noqa: PLR2004
        # its name is another one since transformers 5.24
        cache = next((each for each in kwargs.values() if isinstance(each, Cache)), None)
        return cls(
            mask=mask.bool() if is_plain and mask is not None else None,
            num_before=0 if cache is None else int(cache.get_seq_length()),
        )

    def real_tokens(self, hidden: Tensor) -> RealTokens:
        """For hidden states or logits, ``(batch, seq, ...)``."""
        rows, length = (*hidden.shape, 1)[:2]
        mask = None
        if self.mask is not None and self.mask.shape[0] == rows and self.mask.shape[1] >= length:
            mask = self.mask[:, -length:]
        return RealTokens(num_rows=rows, length=length, mask=mask)

    def before(self, row: int, length: int) -> int:
        """Real tokens of a row that earlier forwards saw."""
        if self.mask is None or row >= self.mask.shape[0]:
            return self.num_before
        return int(self.mask[row, : self.mask.shape[1] - length].sum())


class _Attached:
    """Hooks on a model, and a mode that keeps the operations of the layer that is running.

    Args:
        model: whose forwards are watched.
        layout: its layers.
        begins: asked when a forward begins whether it is to be watched.
        look_into: called with a stretch whose result is not finite.
        products: computes matrix products, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layout: Architecture,
        begins: Callable[..., bool],
        look_into: Callable[[_Kept], None],
        products: RoundedProducts | Float16Sums | None,
    ) -> None:
        self._model = model
        self._begins = begins
        self._look_into = look_into
        self._positions = _Positions(mask=None, num_before=0)
        self._depth = 0
        """Forwards that are running: an encoder's inside the model's, or before it."""
        self._is_running = False
        self._is_broken = False
        self._suspect: _Kept | None = None
        """The first stretch that was not finite somewhere."""
        self._stack = ModuleStack(model)
        self._recorder = _Recorder(self._stack, products)
        self._handles = [
            model.get_submodule(unit.name).register_forward_hook(
                partial(self._leave, unit, index),
                with_kwargs=True,
                prepend=True,  # before weights that come and go are gone
            )
            for index, unit in enumerate(layout.blocks)
        ]
        # generate() calls an encoder by itself, before the first forward of the model
        for root in {id(each): each for each in (model, _encoder_of(model))}.values():
            self._handles += [
                root.register_forward_pre_hook(self._begin, with_kwargs=True),
                root.register_forward_hook(self._end, always_call=True),
            ]

    def detach(self) -> None:
        """Takes the mode and the hooks off."""
        self._stop()
        self._stack.detach()
        for handle in self._handles:
            handle.remove()

    def _begin(self, root: nn.Module, _: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._depth += 1
        if self._depth == 1 and self._begins(is_whole=root is self._model):
            self._positions = _Positions.of(kwargs)
            self._is_running = True
            self._recorder.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
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
        self._recorder.ran = []

    def _leave(
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
        self._recorder.ran = []

    def _check(self, output: Tensor, unit: Unit | None, index: int | None, given: Any) -> None:
        """Looks into the operations since the last layer if what they gave is not finite."""
        if self._is_broken:
            return
        with _disable_current_modes(), torch.no_grad():
            low, high = torch.aminmax(output)
            if math.isfinite(float(low)) and math.isfinite(float(high)):
                return
            real = self._positions.real_tokens(output)
            kept = _Kept(
                ran=self._recorder.ran,
                hidden=hidden_states_in(list(tensors_in(given))),
                unit=unit,
                index=index,
                real_tokens=real,
                positions=self._positions,
            )
            # what breaks at padding reaches real tokens a layer later, if it does
            self._suspect = self._suspect or kept
            if bool(real.tokens(output).isfinite().all()):
                return
            self._is_broken = True
            self._look_into(self._suspect)


def _encoder_of(model: nn.Module) -> nn.Module:
    """The encoder of an encoder-decoder model; any other model itself."""
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return model
    found = getattr(model, "get_encoder", lambda: None)()
    return found if isinstance(found, nn.Module) else model


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Kept:
    """The operations of a stretch that broke."""

    ran: list[_Ran]
    hidden: list[Tensor]
    """Hidden states it was given."""
    unit: Unit | None
    """The decoder layer; None for what comes after the last."""
    index: int | None
    real_tokens: RealTokens
    positions: _Positions

    def overflows(
        self, weights: dict[int, str], classifier: Classifier
    ) -> tuple[tuple[Overflow, ...], bool]:
        """A row for each operation that broke, and whether it began there.

        Where every broken operation was given something broken, the first of them stands for all.
        """
        examiner = Examiner(
            reference=None,
            real_tokens=self.real_tokens,
            weight_faults=self._broken_weights(weights),
            next_identity=count(1).__next__,
        )
        segment = self._examined(examiner, weights)
        producers = examiner.take_producers()
        position = Position.HEAD if self.unit is None else Position.BLOCK
        found = tuple(
            self._row(
                each,
                Mechanism.WEIGHTS
                if each.is_weight
                else classifier.mechanism(each.node, segment, None, position),
            )
            for each in producers
        )
        if found:
            return found, True
        broken = next(each for each in segment.nodes if not each.is_finite)
        return (self._left_behind(broken),), False

    def _broken_weights(self, weights: dict[int, str]) -> frozenset[int]:
        """Ids of parameters that were used and are not finite."""
        used = {id(each): each for _, args, _, _, _, _ in self.ran for each in tensors_in(args)}
        return frozenset(
            identity
            for identity, each in used.items()
            if identity in weights
            and each.is_floating_point()
            and not bool(torch.stack(torch.aminmax(each)).isfinite().all())
        )

    def _examined(self, examiner: Examiner, weights: dict[int, str]) -> Segment:
        watcher = OpWatcher(
            stack=None, weights=weights, real_tokens=self.real_tokens, check=lambda: None
        )
        watcher.examination = examiner
        watcher.begin(self.hidden)
        for func, args, kwargs, output, module, source in self.ran:
            watcher.replay(func, args, kwargs, output, module=module, source=source)
        return watcher.end()

    def _row(self, producer: Producer, mechanism: Mechanism) -> Overflow:
        positions = {
            f"row {row}": position + self.positions.before(row, self.real_tokens.length)
            for row, position in producer.positions.items()
        }
        return self._overflow(
            producer.node,
            mechanism=mechanism,
            num_elements=producer.num_elements,
            rows=producer.rows,
            positions=positions,
        )

    def _left_behind(self, node: OpNode) -> Overflow:
        return self._overflow(
            node, mechanism=Mechanism.OTHER, num_elements=0, rows=(), positions={}
        )

    def _overflow(
        self,
        node: OpNode,
        *,
        mechanism: Mechanism,
        num_elements: int,
        rows: tuple[int, ...],
        positions: dict[str, int],
    ) -> Overflow:
        dtype = node.dtype or torch.float32
        return Overflow(
            module=node.module,
            layer=None if self.unit is None else self._layer(),
            section=Section.HEAD if self.unit is None else self.unit.section,
            op=node.op,
            source=node.source,
            source_file=node.source_file,
            code=linecache.getline(node.filename, node.line).strip(),
            mechanism=mechanism,
            reference_abs_max=None,
            limit=float(torch.finfo(dtype).max),
            num_elements=num_elements,
            probes=tuple(f"row {row}" for row in rows),
            first_positions=positions,
            absorbed=False,
        )

    def _layer(self) -> int | None:
        name = "" if self.unit is None else self.unit.name.rpartition(".")[2]
        return int(name) if name.isdigit() else self.index
