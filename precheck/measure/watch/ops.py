"""Watches every operation of a run: where it happened, what it read, and how large it became.

Idea. A ``TorchDispatchMode`` sees each ATen operation below autograd, after composite functions
are taken apart, whatever the modeling code looks like. Hooks on every module keep a stack of
names, so that an operation knows the module it ran in. One ``torch.aminmax`` per output says
whether it is finite and how large it is: it reads the tensor once and hands NaN on. The results
stay on the device until a unit is over and are then fetched together.

Assumptions. Operations that only view or move data cannot make a fault and are not reduced. Of an
operation with several outputs the first floating-point one is watched. A tensor keeps its Python
identity while it lives, and this identity links an operation to those it reads from.

What it cannot see: inside one kernel (fused attention, the accumulator of a product), what is
computed without a dispatched operation, and what the hooks themselves switch off (fusions).
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.measure.watch.float16_sums import Float16Sums
from precheck.measure.watch.op_kinds import (
    ARGMAX,
    CASTS,
    FUSED_ATTENTION,
    MASK_SENTINEL,
    TOPK,
    OpKind,
    op_kind,
)
from precheck.measure.watch.segment import (
    HIDDEN,
    OTHER,
    WEIGHT,
    OpNode,
    Origin,
    Segment,
    fused_call,
    next_ordinal,
)
from precheck.measure.watch.source_line import source_line
from precheck.measure.watch.trees import tensors_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor
    from torch._ops import OpOverload

    from precheck.measure.watch.module_stack import ModuleStack
    from precheck.measure.watch.operands import OperandRecorder
    from precheck.measure.watch.parameters import Parameters
    from precheck.measure.watch.real_tokens import RealTokens
    from precheck.measure.watch.rounded_products import RoundedProducts


class Examination(Protocol):
    """Examines operations one by one while they run."""

    def before(self, tensors: list[Tensor], *, overwrites: bool) -> None:
        """The inputs of the next operation, which may write into one of them."""

    def viewed(self, base: Tensor, views: list[Tensor]) -> None:
        """``views`` share the storage of ``base``."""

    def ran(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> None:
        """``node`` computed the floating-point ``output`` from ``tensors``."""

    def ran_complex(self, output: Tensor) -> None:
        """The last operation made a complex tensor, as rotations by ``view_as_complex`` do."""


class OpWatcher(TorchDispatchMode):
    """Records every operation of one run into the current segment.

    ``check`` runs before each operation and may raise to leave the forward. While ``examination``
    is set, every operation is passed to it. ``products`` computes matrix products where the device
    has no arithmetic for the run's dtype.

    ``device`` is the run's, given where parameters come and go. An absent parameter is on meta: a
    tensor made on its device is made on this one instead, and an operation that reads it raises.
    ``on_op`` is shown every operation, the tensors that it read and what it gave. ``buckets`` are
    columns of the batch whose bounds are wanted too, by number. ``operands`` records how
    large what they read is.
    """

    def __init__(
        self,
        *,
        stack: ModuleStack | None,
        parameters: Parameters,
        real_tokens: RealTokens,
        check: Callable[[], None],
        products: RoundedProducts | Float16Sums | None = None,
        device: torch.device | None = None,
        on_op: Callable[[OpNode, list[Tensor], list[Tensor]], None] | None = None,
        buckets: Sequence[tuple[int, slice]] = (),
        operands: OperandRecorder | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segment = Segment()
        self.examination: Examination | None = None
        self.paused = False
        self.num_watched = 0
        self.unwatched: Counter[str] = Counter()
        self._stack = stack
        self._parameter_names = parameters.names
        self._real_tokens = real_tokens
        self._check = check
        self._products = products
        self._device = device
        self._on_op = on_op
        self._buckets = buckets
        self._operands = operands
        self._origins: dict[int, Origin] = {}
        self._ran_at: tuple[str, tuple[str, int]] | None = None
        """Module and source line of an operation that is replayed; None while one runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: the wrapper that keeps the compiler out would cost more than the handler itself."""
        return False

    def begin(self, hidden: Iterable[Tensor] = ()) -> None:
        """Opens a segment; ``hidden`` are the tensors it starts from that carry activations."""
        self.segment = Segment()
        if self._operands is not None:
            self._operands.begin()
        self._origins = {id(tensor): Origin(HIDDEN, 0) for tensor in hidden}

    def end(self) -> Segment:
        """The segment, its numbers fetched."""
        self.segment.fetch()
        return self.segment

    def __torch_dispatch__(
        self, func: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self._check()
        tensors = list(tensors_in((args, kwargs)))
        if self._device is not None:
            kwargs = self._on_device(kwargs, tensors)
        if self.examination is not None:
            self.examination.before(tensors, overwrites=op_kind(func).overwrites)
        products = self._products
        if products is not None and products.applies_to(op_kind(func).name, tensors):
            output = products.compute(func, args, kwargs)
        else:
            output = func(*args, **kwargs)
        self._record(func, args, kwargs, tensors, output)
        return output

    def _on_device(self, kwargs: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
        """The arguments with the run's device for meta.

        ``ids.to(embedding.weight.device)`` reads the device before the weight is there.

        Raises:
            RuntimeError: a tensor has no values, and torch might return uninitialised memory.
        """
        if any(tensor.is_meta for tensor in tensors):
            raise RuntimeError("an operation on a meta tensor")
        device = kwargs.get("device")
        if device is None or torch.device(device).type != "meta":
            return kwargs
        return {**kwargs, "device": self._device}

    def replay(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
        *,
        module: str,
        source: tuple[str, int],
    ) -> None:
        """Records an operation that ran before, in ``module``, at file and line ``source``."""
        tensors = list(tensors_in((args, kwargs)))
        if self.examination is not None:
            self.examination.before(tensors, overwrites=False)
        self._ran_at = (module, source)
        try:
            self._record(func, args, kwargs, tensors, output)
        finally:
            self._ran_at = None

    def _record(
        self, func: OpOverload, args: Any, kwargs: Any, tensors: list[Tensor], output: Any
    ) -> None:
        kind = op_kind(func)
        outputs = list(tensors_in(output))
        if not outputs:
            return
        if kind.is_view:
            self._record_view(tensors[0], outputs)
            self._skip(kind.name)
            return
        node = self._node(kind, args, tensors, outputs[0])
        for tensor in outputs:
            self._origins[id(tensor)] = Origin(node.index, 0)
        if kind.name == TOPK or (kind.name == ARGMAX and tensors[0].is_floating_point()):
            self.segment.routes.append((node, outputs[-1]))
        if self._operands is not None:
            if FUSED_ATTENTION in kind.name:
                self.segment.fused.append(fused_call(node, func, args, kwargs, outputs[0]))
            self._operands.record(self.segment, node, tensors, outputs)
        self._reduce(kind, node, outputs[0])
        if self._on_op is not None and outputs[0].is_floating_point():
            self._on_op(node, tensors, outputs)
        self._examine(node, tensors, outputs[0])

    def _examine(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> None:
        if self.examination is None:
            return
        if output.is_floating_point():
            self.examination.ran(node, tensors, output)
        elif output.is_complex():
            self.examination.ran_complex(output)

    def _record_view(self, base: Tensor, views: list[Tensor]) -> None:
        origin = self._origin(base)
        for view in views:
            self._origins[id(view)] = Origin(origin.node, int(view.storage_offset()))
        if self.examination is not None:
            self.examination.viewed(base, views)

    def _reduce(self, kind: OpKind, node: OpNode, output: Tensor) -> None:
        if kind.is_move or not output.is_floating_point() or output.numel() == 0:
            self._skip(kind.name)
            return
        self.num_watched += 1
        self.segment.reduce_later(node, output)
        real = self._real_tokens.select(output)
        if real is output:
            node.is_all_real = True
        elif real is not None and real.numel():
            self.segment.reduce_later(node, real, is_real=True)
        self._reduce_by_position(node, output)

    def _reduce_by_position(self, node: OpNode, output: Tensor) -> None:
        dim = self._real_tokens.position_dim(output) if self._buckets else None
        if dim is None:
            return
        for bucket, columns in self._buckets:
            part = output.narrow(dim, columns.start, columns.stop - columns.start)
            self.segment.reduce_later(node, part, bucket=bucket)

    def _skip(self, name: str) -> None:
        self.unwatched[name] += 1

    def _node(self, kind: OpKind, args: Any, tensors: list[Tensor], output: Tensor) -> OpNode:
        is_cast = kind.name in CASTS
        if self._ran_at is None:
            assert self._stack is not None  # noqa: S101  only replays have none
            module = self._stack.names[-1]
            filename, line = source_line(sys._getframe(2))  # noqa: SLF001  inspect.stack reads files
        else:
            module, (filename, line) = self._ran_at
        node = OpNode(
            index=len(self.segment.nodes),
            module=module,
            op=kind.name,
            ordinal=0 if is_cast else next_ordinal(self.segment.ordinals, module, kind.name),
            inputs=tuple(self._origin(tensor) for tensor in tensors),
            shape=tuple(output.shape),
            dtype=output.dtype if output.is_floating_point() else None,
            is_cast=is_cast,
            has_mask_scalar=any(isinstance(arg, float) and arg <= MASK_SENTINEL for arg in args),
            filename=filename,
            line=line,
        )
        if isinstance(self._products, Float16Sums):
            node.sum_bound = self._products.bound
            node.overflowed_inside = self._products.overflowed_inside
        self.segment.nodes.append(node)
        return node

    def _origin(self, tensor: Tensor) -> Origin:
        # first: a parameter that was just loaded may have the identity of an output that is gone
        if id(tensor) in self._parameter_names:
            return Origin(WEIGHT, 0)
        return self._origins.get(id(tensor)) or Origin(OTHER, 0)
