"""Watches every operation of a run: where it happened, what it read, and how large it became.

Idea. A ``TorchDispatchMode`` sees each ATen operation below autograd, after composite functions
are taken apart, whatever the modeling code looks like. Hooks on every module keep a stack of
names, so that an operation knows the module it ran in. One ``torch.aminmax`` per output says
whether it is finite and how large it is: it reads the tensor once and hands NaN on. The results
stay on the device until a unit is over and are then fetched together.

Assumptions. Operations that only view or move data cannot make a fault and are not reduced. Of an
operation with several outputs the first floating-point one is watched. A tensor keeps its Python
identity while it lives, which is what links an operation to those it reads from.

What it cannot see: inside one kernel (fused attention, the accumulator of a product), what is
computed without a dispatched operation, and what the hooks themselves switch off (fusions).
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.probe.reduce import MASK_SENTINEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import CodeType

    from torch import Tensor, nn
    from torch._ops import OpOverload
    from torch.utils.hooks import RemovableHandle

    from precheck.probe.batches import RealTokens

WEIGHT, HIDDEN, OTHER = -1, -2, -3
"""Origins that are not operations of the segment: a parameter, hidden states, anything else."""

MOVES = frozenset(
    {
        "aten._reshape_copy",
        "aten._unsafe_index",
        "aten.arange",
        "aten.cat",
        "aten.clone",
        "aten.constant_pad_nd",
        "aten.contiguous",
        "aten.copy_",
        "aten.empty",
        "aten.empty_like",
        "aten.empty_strided",
        "aten.expand_copy",
        "aten.flip",
        "aten.gather",
        "aten.index",
        "aten.index_select",
        "aten.lift_fresh",
        "aten.masked_select",
        "aten.new_empty",
        "aten.new_ones",
        "aten.new_zeros",
        "aten.ones",
        "aten.ones_like",
        "aten.repeat",
        "aten.repeat_interleave",
        "aten.roll",
        "aten.scatter",
        "aten.slice_scatter",
        "aten.stack",
        "aten.unfold_copy",
        "aten.zeros",
        "aten.zeros_like",
    }
)
"""Make nothing: they hand elements on, or write constants. Their output is not reduced."""

UNDECLARED_VIEWS = frozenset({"aten._unsafe_view"})
"""Views whose schema does not say so."""

CASTS = frozenset({"aten._to_copy"})

MASK_WRITERS = frozenset(
    {
        "aten.fill",
        "aten.fill_",
        "aten.full",
        "aten.full_like",
        "aten.masked_fill",
        "aten.masked_fill_",
        "aten.new_full",
        "aten.scalar_tensor",
        "aten.tril",
        "aten.triu",
        "aten.where",
    }
)

FUSED_ATTENTION = "scaled_dot_product"


class Origin(NamedTuple):
    """Which operation of the segment made a tensor, and where in its storage a view starts."""

    node: int
    offset: int


@dataclass(slots=True, eq=False, kw_only=True)
class OpNode:
    """One operation as it ran."""

    index: int
    module: str
    op: str
    ordinal: int
    inputs: tuple[Origin, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    is_cast: bool
    has_mask_scalar: bool
    filename: str
    line: int
    minimum: float | None = None
    maximum: float | None = None
    is_all_real: bool = False
    """Every position of the output is a real token, or has none."""
    real_bounds: tuple[float, float] | None = None
    """The same at real tokens; None where the shape of the output does not tell which they are."""

    @property
    def key(self) -> tuple[str, str, int]:
        """What matches the operation in another run."""
        op = FUSED_ATTENTION if FUSED_ATTENTION in self.op else self.op
        return (self.module, op, self.ordinal)

    @property
    def source(self) -> str:
        """``modeling_qwen2.py:155``."""
        return f"{PurePath(self.filename).name}:{self.line}"

    @property
    def is_finite(self) -> bool:
        """Whether nothing but finite values was seen (also when the op was not reduced)."""
        return self.minimum is None or (
            math.isfinite(self.minimum) and math.isfinite(self.maximum or 0.0)
        )

    @property
    def abs_max(self) -> float | None:
        """Largest magnitude at real tokens.

        None where the op was not reduced, holds a mask or something that is not finite.
        """
        bounds = (self.minimum, self.maximum) if self.is_all_real else self.real_bounds
        low, high = bounds or (None, None)
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return None
        return max(abs(low), abs(high)) if low > MASK_SENTINEL else None


@dataclass(slots=True, eq=False)
class Segment:
    """The operations between two unit boundaries of one run, in order."""

    nodes: list[OpNode] = field(default_factory=list)
    routes: list[Tensor] = field(default_factory=list)
    """Indices that ``topk`` chose, ``(tokens, k)`` int64: the routing of a mixture of experts."""
    scores: list[tuple[OpNode, Tensor, Tensor]] = field(default_factory=list)
    """Query and key of every fused attention call, ``(batch, heads, seq, head_dim)``."""
    _pending: list[tuple[OpNode, Tensor, Tensor, bool]] = field(default_factory=list)
    _ordinals: dict[tuple[str, str], int] = field(default_factory=dict)

    def ordinal(self, module: str, op: str) -> int:
        """How often ``op`` ran in ``module`` before, in this segment."""
        key = (module, FUSED_ATTENTION if FUSED_ATTENTION in op else op)
        count = self._ordinals.get(key, 0)
        self._ordinals[key] = count + 1
        return count

    def reduce_later(self, node: OpNode, output: Tensor, *, is_real: bool = False) -> None:
        """Reduces on the device, without waiting for the result."""
        low, high = torch.aminmax(output)
        self._pending.append((node, low, high, is_real))

    def fetch(self) -> None:
        """One host synchronisation a dtype for every operation since the last."""
        by_dtype: dict[torch.dtype, list[tuple[OpNode, Tensor, Tensor, bool]]] = {}
        for each in self._pending:
            by_dtype.setdefault(each[1].dtype, []).append(each)
        for group in by_dtype.values():
            values = torch.stack([bound for _, low, high, _ in group for bound in (low, high)])
            numbers = values.tolist()
            for position, (node, _, _, is_real) in enumerate(group):
                bounds = (numbers[2 * position], numbers[2 * position + 1])
                if is_real:
                    node.real_bounds = bounds
                else:
                    node.minimum, node.maximum = bounds
        self._pending.clear()


class ModuleStack:
    """Names of the modules that are running, innermost last; kept by hooks on every module."""

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = [""]
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            if name:
                self._attach(name, module)

    def _attach(self, name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            self.names.append(name)

        def leave(*_: object) -> None:
            self.names.pop()

        self._handles.append(module.register_forward_pre_hook(enter))
        # always_call: a forward that raises must not leave its name on the stack
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def detach(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.names[:] = [""]


class OpKind(NamedTuple):
    """What the schema of an operation tells; looked up once for each."""

    name: str
    is_view: bool
    is_move: bool
    overwrites: bool


_KINDS: dict[OpOverload, OpKind] = {}


def op_kind(func: OpOverload) -> OpKind:
    """Name and nature of an ATen overload, ``aten.bmm`` for ``aten::bmm.out`` too."""
    kind = _KINDS.get(func)
    if kind is None:
        schema = func._schema  # noqa: SLF001  the public spelling of an op is its schema
        name = schema.name.replace("::", ".")
        aliases = [each.alias_info for each in schema.returns]
        is_view = name in UNDECLARED_VIEWS or any(
            alias is not None and not alias.is_write for alias in aliases
        )
        kind = _KINDS[func] = OpKind(name, is_view, name in MOVES, schema.is_mutable)
    return kind


class Examination(Protocol):
    """Looks at operations more closely, one by one, while they run."""

    def before(self, tensors: list[Tensor], *, overwrites: bool) -> None:
        """The inputs of the next operation, which may write into one of them."""

    def viewed(self, base: Tensor, views: list[Tensor]) -> None:
        """``views`` share the storage of ``base``."""

    def ran(self, node: OpNode, tensors: list[Tensor], output: Tensor) -> None:
        """``node`` made the floating-point ``output`` out of ``tensors``."""


class OpWatcher(TorchDispatchMode):
    """Records every operation of one run into the current segment.

    ``check`` runs before each operation and may raise to leave the forward. While ``examination``
    is set, every operation is shown to it.
    """

    def __init__(
        self,
        *,
        stack: ModuleStack,
        weights: dict[int, str],
        real_tokens: RealTokens,
        check: Callable[[], None],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.segment = Segment()
        self.examination: Examination | None = None
        self.paused = False
        self.num_watched = 0
        self.unwatched: dict[str, int] = {}
        self._stack = stack
        self._weights = weights
        self._real_tokens = real_tokens
        self._check = check
        self._origins: dict[int, Origin] = {}

    def begin(self, hidden: Iterable[Tensor] = ()) -> None:
        """Opens a segment; ``hidden`` are the tensors it starts from that carry activations."""
        self.segment = Segment()
        self._origins = {id(each): Origin(HIDDEN, 0) for each in hidden}

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
        if self.examination is not None:
            self.examination.before(tensors, overwrites=op_kind(func).overwrites)
        output = func(*args, **kwargs)
        self._record(func, args, tensors, output)
        return output

    def _record(self, func: OpOverload, args: Any, tensors: list[Tensor], output: Any) -> None:
        kind = op_kind(func)
        outputs = list(tensors_in(output))
        if not outputs:
            return
        if kind.is_view:
            self._record_view(tensors[0], outputs)
            self._skip(kind.name)
            return
        node = self._node(kind, args, tensors, outputs[0])
        for each in outputs:
            self._origins[id(each)] = Origin(node.index, 0)
        if kind.name == "aten.topk":
            self.segment.routes.append(outputs[1])
        if FUSED_ATTENTION in kind.name:
            self.segment.scores.append((node, tensors[0], tensors[1]))
        self._reduce(kind, node, outputs[0])
        if self.examination is not None and outputs[0].is_floating_point():
            self.examination.ran(node, tensors, outputs[0])

    def _record_view(self, base: Tensor, views: list[Tensor]) -> None:
        origin = self._origin(base)
        for each in views:
            self._origins[id(each)] = Origin(origin.node, int(each.storage_offset()))
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

    def _skip(self, name: str) -> None:
        self.unwatched[name] = self.unwatched.get(name, 0) + 1

    def _node(self, kind: OpKind, args: Any, tensors: list[Tensor], output: Tensor) -> OpNode:
        module = self._stack.names[-1]
        is_cast = kind.name in CASTS
        filename, line = _source(sys._getframe(2))  # noqa: SLF001  inspect.stack reads files
        node = OpNode(
            index=len(self.segment.nodes),
            module=module,
            op=kind.name,
            ordinal=0 if is_cast else self.segment.ordinal(module, kind.name),
            inputs=tuple(self._origin(each) for each in tensors),
            shape=tuple(output.shape),
            dtype=output.dtype if output.is_floating_point() else None,
            is_cast=is_cast,
            has_mask_scalar=any(isinstance(each, float) and each <= MASK_SENTINEL for each in args),
            filename=filename,
            line=line,
        )
        self.segment.nodes.append(node)
        return node

    def _origin(self, tensor: Tensor) -> Origin:
        found = self._origins.get(id(tensor))
        if found is not None:
            return found
        return Origin(WEIGHT if id(tensor) in self._weights else OTHER, 0)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists and dicts, in order."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)


_TORCH = str(PurePath(torch.__file__).parent)
_OWN = str(PurePath(__file__).parents[1])
_RANK: dict[CodeType, int] = {}


def _source(frame: Any) -> tuple[str, int]:
    """File and line of the innermost modeling frame, else of the innermost outside torch."""
    fallback: tuple[str, int] | None = None
    while frame is not None:
        code = frame.f_code
        rank = _RANK.get(code)
        if rank is None:
            rank = _RANK[code] = _frame_rank(code.co_filename)
        if rank == 2:  # noqa: PLR2004
            return code.co_filename, frame.f_lineno
        if rank == 1 and fallback is None:
            fallback = (code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return fallback or ("<unknown>", 0)


def _frame_rank(filename: str) -> int:
    """2 for modeling code, 1 for other code that is neither torch nor precheck, 0 for those."""
    if PurePath(filename).name.startswith("modeling_"):
        return 2
    return 0 if filename.startswith((_TORCH, _OWN, "<")) else 1
