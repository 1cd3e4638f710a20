"""The first operation that breaks, found by brute force: every output of two whole runs compared.

Independent of the package on purpose: nothing is reduced, nothing skipped for speed, and the two
streams of operations are aligned as sequences instead of by name.
"""

from __future__ import annotations

import difflib
import linecache
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from transformers import PreTrainedModel

_CAST = "aten._to_copy"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOp:
    """An operation as it ran, with copies of what it read and wrote."""

    op: str
    module: str
    source: str
    code: str
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What the matching operation of the other run has in common."""
        return self.op, self.module, self.source, tuple(output.shape for output in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A whole forward: its operations in order, the decoder layers' outputs, and the logits."""

    ops: list[RecordedOp] = field(default_factory=list)
    layers: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstFault:
    """The first operation with an unexpected element in its output."""

    op: str
    module: str
    source: str
    code: str
    reads_nonfinite_weight: bool
    absorbed: bool
    """No decoder layer hands an unexpected element on, and the logits hold none."""
    reference_abs_max: float


def first_fault(
    reference: PreTrainedModel, model: PreTrainedModel, inputs: dict[str, torch.Tensor]
) -> FirstFault | None:
    """Where ``model`` first leaves its range on the inputs, or None; both run once."""
    expected, actual = record(reference, inputs), record(model, inputs)
    weights = {name for name, each in model.named_parameters() if not each.isfinite().all()}
    for op, match in _aligned(expected.ops, actual.ops):
        if not _is_faulty(op, match):
            continue
        return FirstFault(
            op=op.op,
            module=op.module,
            source=op.source,
            code=op.code,
            reads_nonfinite_weight=bool(weights)
            and any(not each.isfinite().all() for each in op.inputs),
            absorbed=not any(
                unexpected(actual.layers[name], expected.layers[name]).any()
                for name in actual.layers
            )
            and not unexpected(actual.logits, expected.logits).any(),
            reference_abs_max=max(
                float(output[output.isfinite()].abs().max())
                for output in (match.outputs if match else op.inputs)
            ),
        )
    return None


def unexpected(output: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """A mask: non-finite where the reference is finite, or NaN where it holds a mask sentinel.

    >>> inf = torch.inf
    >>> unexpected(torch.tensor([inf, -inf, 1.0]), torch.tensor([1e6, -3.4e38, 1.0])).tolist()
    [True, False, False]
    """
    sentinel = reference <= torch.finfo(reference.dtype).min / 2
    return torch.where(sentinel, output.isnan(), ~output.isfinite() & reference.isfinite())


def record(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> Recording:
    """The recording of one forward without a cache."""
    layers: dict[str, torch.Tensor] = {}
    with torch.no_grad(), _module_stack(model, layers) as stack, _Recorder(stack) as recorder:
        logits = model(**inputs, use_cache=False).logits
    return Recording(ops=recorder.ops, layers=layers, logits=logits)


def _aligned(
    expected: list[RecordedOp], actual: list[RecordedOp]
) -> Iterator[tuple[RecordedOp, RecordedOp | None]]:
    """Every operation of the run in order, casts included, with its match in the reference."""
    references = [each for each in expected if each.op != _CAST]
    candidates = [each for each in actual if each.op != _CAST]
    matcher = difflib.SequenceMatcher(
        None,
        [reference.key for reference in references],
        [candidate.key for candidate in candidates],
        autojunk=False,
    )
    matches: dict[int, RecordedOp] = {}
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            matches[id(candidates[block.b + offset])] = references[block.a + offset]
    for each in actual:
        yield each, matches.get(id(each))


def _is_faulty(op: RecordedOp, match: RecordedOp | None) -> bool:
    if op.op == _CAST:
        return any(map(_any_unexpected, op.outputs, op.inputs))
    if match is not None:
        return any(map(_any_unexpected, op.outputs, match.outputs))
    is_clean = all(each.isfinite().all() for each in op.inputs)
    return is_clean and any(not output.isfinite().all() for output in op.outputs)


def _any_unexpected(output: torch.Tensor, reference: torch.Tensor) -> bool:
    return bool(unexpected(output, reference).any())


class _Recorder(TorchDispatchMode):
    """Keeps a copy of everything computed; views and allocated memory are nobody's result."""

    def __init__(self, stack: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[RecordedOp] = []
        self._stack = stack

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = _floating((args, kwargs))
        output = func(*args, **(kwargs or {}))
        op = str(func.overloadpacket)
        if not func.is_view and "empty" not in op:
            source, code = _line(sys._getframe(1))  # noqa: SLF001
            self.ops.append(
                RecordedOp(
                    op=op,
                    module=self._stack[-1],
                    source=source,
                    code=code,
                    inputs=inputs,
                    outputs=_floating(output),
                )
            )
        return output


def _floating(tree: object) -> tuple[torch.Tensor, ...]:
    """Copies of the floating-point tensors in the tree."""
    return tuple(
        leave.detach().clone()
        for leave in tree_leaves(tree)
        if isinstance(leave, torch.Tensor) and leave.is_floating_point()
    )


def _line(frame: FrameType | None) -> tuple[str, str]:
    """``modeling_x.py:line`` and the text of the innermost frame in a modeling file."""
    while frame is not None:
        name = Path(frame.f_code.co_filename).name
        if name.startswith("modeling_"):
            text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
            return f"{name}:{frame.f_lineno}", text.strip()
        frame = frame.f_back
    return "", ""


@contextmanager
def _module_stack(model: PreTrainedModel, layers: dict[str, torch.Tensor]) -> Iterator[list[str]]:
    """The names of the modules now running, innermost last; fills the decoder layers' outputs."""
    stack: list[str] = []
    handles = []

    def enter(name: str) -> Any:
        return lambda *_: stack.append(name)

    def leave(name: str, is_layer: bool) -> Any:
        def hook(_module: object, _args: object, output: Any) -> None:
            assert stack.pop() == name
            if is_layer:
                tensor = output[0] if isinstance(output, tuple) else output
                layers[name] = tensor.detach().clone()

        return hook

    block_names = set(model._no_split_modules or ())  # noqa: SLF001
    for name, module in model.named_modules():
        is_layer = type(module).__name__ in block_names and name.rpartition(".")[2].isdigit()
        handles.append(module.register_forward_pre_hook(enter(name)))
        handles.append(module.register_forward_hook(leave(name, is_layer)))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def modules_with_nonfinite_output(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor]
) -> list[str]:
    """What forward hooks on every module see: those whose output is not finite, as they end."""
    broken: list[str] = []

    def watch(module_name: str) -> None:
        def hook(_module: object, _args: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and not tensor.isfinite().all():
                broken.append(module_name)

        model.get_submodule(module_name).register_forward_hook(hook)

    for module_name, _ in model.named_modules():
        watch(module_name)
    with torch.no_grad():
        model(**inputs)
    return broken
