"""Weights, and activations where the format has them, as a format stores them.

Idea. While a decoder layer runs, each of its matrices is replaced by its stored form, made when the
layer begins and shared by all batches of the run. A format of weights alone is decoded to the run's
dtype, as kernels do that decode while they multiply. Where activations have a format too, the input
of every linear layer, and of every product of experts, is replaced by its stored form, and the
product of both is in float32 and rounded once, as in kernels that multiply the codes and scale the
sum.

Assumptions. Embeddings, the head, routers, towers and projectors stay as they are: engines and the
usual recipes leave them out.

What it cannot see: sums inside a kernel are those of float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.facts.formats import weight_format
from precheck.measure.formats.stored_op import Stored, store
from precheck.measure.formats.stored_products import StackedMatrix, StoredProducts
from precheck.measure.models.settings import setting, text_config
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.presence import Presence
    from precheck.measure.models.skeleton import Skeleton

_SECTIONS = frozenset({Section.DECODER, Section.ENCODER})
_TRANSPOSED = frozenset({"Llama4TextExperts"})
"""Experts whose inputs lie along the second to last dimension, and that do not say so."""

_Before = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]
"""A hook before a module, which returns the arguments to call it with."""

_EXPERT_SETTINGS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


class QuantizedRuns:
    """Makes the presence of runs whose weights have a format.

    Runs that advance in lockstep share one of these: what one batch's run stored serves the others.
    """

    def __init__(self, layout: Architecture) -> None:
        self._blocks = _blocks(layout)
        self._stored: dict[tuple[str, str], _StoredWeight] = {}

    def presence(self, skeleton: Skeleton, inner: Presence) -> Presence:
        """The presence of the skeleton's parameters, in its format if it has one.

        Args:
            skeleton: its model.
            inner: puts its parameters in, in its dtype.
        """
        if skeleton.configuration.quantization is None:
            return inner
        return QuantizedPresence(skeleton, inner, blocks=self._blocks, stored=self._stored)


class _Slot(NamedTuple):
    """Where a parameter is that its stored form replaces while its module runs."""

    module: nn.Module
    key: str
    name: str
    is_transposed: bool = False
    """Its inputs lie along the second to last dimension."""

    @property
    def parameter(self) -> nn.Parameter | None:
        """What is there now."""
        return self.module._parameters[self.key]  # noqa: SLF001  setattr would register

    def put(self, parameter: nn.Parameter | None) -> None:
        """Puts another one there."""
        self.module._parameters[self.key] = parameter  # noqa: SLF001


class _StoredWeight(NamedTuple):
    """A matrix as a format stores it, and the parameter that it was made of."""

    source: weakref.ref[nn.Parameter]
    stored: nn.Parameter


class QuantizedPresence:
    """The presence of parameters in a format, in one skeleton.

    Args:
        skeleton: its model.
        inner: puts the parameters in, in the skeleton's dtype.
        blocks: names of the modules in which matrices are stored in the format.
        stored: by name; shared by the runs in lockstep.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        inner: Presence,
        *,
        blocks: list[str],
        stored: dict[tuple[str, str], _StoredWeight],
    ) -> None:
        self.waiting_points = inner.waiting_points
        self._skeleton = skeleton
        self._inner = inner
        self._format = weight_format(skeleton.configuration.quantization or "")
        self._stored = stored
        self._matrices = [
            slot
            for slot in _matrices(skeleton.model, blocks)
            if skeleton.storing.is_stored(slot.name)
        ]
        self._restoring: dict[str, ExitStack] = {}
        """By module that runs, what puts everything back."""
        self._replaced: set[str] = set()

    def enter(
        self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Puts the stored form of a module's matrices in the place of those that are there."""
        changed = self._inner.enter(module, args, kwargs)
        within = [slot for slot in self._matrices if slot.name.startswith(f"{module}.")]
        if within:
            self._forget_all_but(within)
        restoring = self._restoring.setdefault(module, ExitStack())
        for owner, slots in groupby(self._found(within, restoring), lambda slot: slot.module):
            before = self._format_module(owner, list(slots), restoring)
            if before is None:
                continue
            if owner is self._skeleton.model.get_submodule(module):  # too late for another hook
                args, kwargs = changed or (args, kwargs)
                changed = before(owner, args), kwargs
            else:
                restoring.callback(owner.register_forward_pre_hook(before).remove)
        return changed

    def _found(self, slots: list[_Slot], restoring: ExitStack) -> list[_Slot]:
        """Those whose parameter is there, and is not replaced by an outer module's."""
        found = []
        for slot in slots:
            weight = slot.parameter
            if weight is None or weight.is_meta or slot.name in self._replaced:
                continue
            self._replaced.add(slot.name)
            restoring.callback(self._replaced.discard, slot.name)
            found.append(slot)
        return found

    def _format_module(
        self, module: nn.Module, slots: list[_Slot], restoring: ExitStack
    ) -> _Before | None:
        """Makes a module compute in the format; returns what has to be called before it."""
        if self._format.activations is None:
            for slot in slots:
                weight = slot.parameter
                assert weight is not None  # noqa: S101  it was found
                self._replace(slot, self._stored_form(slot, weight), restoring)
            return None
        if isinstance(module, nn.Linear | Conv1D):
            (slot,) = slots
            return self._multiply_in_float32(slot, restoring)
        return self._multiply_stacks_in_float32(slots, restoring)

    def leave(self, module: str, output: Any) -> None:
        """Puts the parameters back."""
        restoring = self._restoring.pop(module, None)
        if restoring is not None:
            restoring.close()
        self._inner.leave(module, output)

    def _replace(self, slot: _Slot, stored: nn.Parameter, restoring: ExitStack) -> None:
        parameters, before = self._skeleton.parameters, slot.parameter
        assert before is not None  # noqa: S101
        slot.put(stored)
        parameters.add(stored, slot.name, is_faulty=parameters.is_faulty(before))
        restoring.callback(parameters.remove, stored)
        restoring.callback(slot.put, before)

    def _stored_form(self, slot: _Slot, weight: nn.Parameter) -> nn.Parameter:
        key = (self._format.name, slot.name)
        known = self._stored.get(key)
        if known is None or known.source() is not weight:
            known = _StoredWeight(weakref.ref(weight), self._made(slot, weight.detach()))
            self._stored[key] = known
        return known.stored

    def _forget_all_but(self, slots: list[_Slot]) -> None:
        kept = {(self._format.name, slot.name) for slot in slots}
        for key in self._stored.keys() - kept:
            del self._stored[key]

    def _made(self, slot: _Slot, weight: Tensor) -> nn.Parameter:
        if self._format.activations is not None:
            weight = weight.float()
        stored = torch.empty_like(weight)
        rows, into = (
            (tensor.transpose(-1, -2) if slot.is_transposed else tensor)
            for tensor in (weight, stored)
        )
        if rows.dim() == 2:  # noqa: PLR2004
            rows, into = rows[None], into[None]
        for matrix, place in zip(rows, into, strict=True):  # experts have scales of their own
            place.copy_(self._read_back(slot, matrix.contiguous()))
        return nn.Parameter(stored, requires_grad=False)

    def _read_back(self, slot: _Slot, matrix: Tensor) -> Tensor:
        parts = self._skeleton.storing.parts
        return store(slot.name, matrix, Stored.WEIGHTS, self._format.name, parts=parts)

    # Activations.

    def _multiply_in_float32(self, slot: _Slot, restoring: ExitStack) -> _Before:
        """Makes a layer multiply in float32, and round the result once.

        Returns what has to be called before the layer: it stores the input.

        Outside its calls the layer has its own weight: some models multiply with that themselves,
        or look at its dtype.
        """
        name, dtype = self._format.name, torch_dtype(self._skeleton.dtype)
        parts = self._skeleton.storing.parts
        bias = _Slot(slot.module, "bias", f"{slot.name.removesuffix('weight')}bias")
        during_call = ExitStack()

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            weight = slot.parameter
            assert weight is not None  # noqa: S101  it was there when the module began
            self._replace(slot, self._stored_form(slot, weight), during_call)
            if bias.parameter is not None:
                self._replace(bias, nn.Parameter(bias.parameter.float()), during_call)
            values = args[0].float()
            return (store(slot.name, values, Stored.ACTIVATIONS, name, parts=parts), *args[1:])

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
            during_call.close()
            return output.to(dtype)

        restoring.callback(during_call.close)  # of a call that raised
        restoring.callback(slot.module.register_forward_hook(after).remove)
        return before

    def _multiply_stacks_in_float32(self, slots: list[_Slot], restoring: ExitStack) -> _Before:
        """As above, of experts, which multiply with their matrices in ways of their own.

        They keep their own parameters: it is the products that read others.
        """
        parameters, storing = self._skeleton.parameters, self._skeleton.storing
        during_call = ExitStack()

        def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            matrices = []
            for slot in slots:
                weight = slot.parameter
                assert weight is not None  # noqa: S101  it was there when the module began
                stored = self._stored_form(slot, weight)
                parameters.add(stored, slot.name, is_faulty=parameters.is_faulty(weight))
                during_call.callback(parameters.remove, stored)
                matrices.append(StackedMatrix(slot.name, weight, stored))
            during_call.enter_context(
                StoredProducts(matrices, self._format.name, parts=storing.parts)
            )
            return args

        def after(_: nn.Module, __: tuple[Any, ...], ___: Any) -> None:
            during_call.close()

        restoring.callback(during_call.close)  # before the parameters go
        hook = slots[0].module.register_forward_hook(after, always_call=True)
        restoring.callback(hook.remove)
        return before


def num_stored(model: nn.Module, layout: Architecture) -> int:
    """How many elements a format of weights stores."""
    parameters = {
        id(parameter): parameter.numel()
        for slot in _matrices(model, _blocks(layout))
        if (parameter := slot.parameter) is not None
    }
    return sum(parameters.values())


def _blocks(layout: Architecture) -> list[str]:
    return [unit.name for unit in layout.blocks if unit.section in _SECTIONS]


def _matrices(model: nn.Module, blocks: list[str]) -> Iterator[_Slot]:
    """What a format stores: linear layers and experts inside blocks, without routers."""
    settings = text_config(model)
    router_widths = {1, *(setting(settings, name) for name in _EXPERT_SETTINGS)}
    seen: set[int] = set()
    for block in blocks:
        for name, module in model.get_submodule(block).named_modules(prefix=block):
            is_router = isinstance(module, nn.Linear) and module.out_features in router_widths
            if not is_router and id(module) not in seen:
                yield from _slots(module, name)
            seen.add(id(module))


def _slots(module: nn.Module, name: str) -> Iterator[_Slot]:
    if isinstance(module, nn.Linear | Conv1D):
        is_transposed = isinstance(module, Conv1D)
        yield _Slot(module, "weight", f"{name}.weight", is_transposed=is_transposed)
    elif type(module).__name__.endswith("Experts"):
        is_transposed = getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED)
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:  # noqa: PLR2004  experts, outputs, inputs
                yield _Slot(module, key, f"{name}.{key}", is_transposed=is_transposed)
