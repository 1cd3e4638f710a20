"""Kinds of ATen operations, by name: which move data, cast, multiply, normalise."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch._ops import OpOverload

from typing import TYPE_CHECKING

import torch

FUSED_ATTENTION = "scaled_dot_product"
TOPK, ARGMAX = "aten.topk", "aten.argmax"
"""How routers choose experts."""
STORING = "precheck.as_stored"
"""Storing in a format and reading back."""
GROUPED_PRODUCT = "grouped_mm"
"""Parts of the names of operations that have several kernels."""


MOVES = frozenset(
    {
        "aten.abs",
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
        "aten.neg",
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
"""Copy elements (at most with another sign) or write constants; their output is not reduced."""

ALLOCATIONS = frozenset(
    {
        "aten.empty",
        "aten.empty_like",
        "aten.empty_strided",
        "aten.new_empty",
        "aten.new_empty_strided",
    }
)
"""Return uninitialised memory: its values mean nothing until it is written."""

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

PRODUCTS = frozenset(
    {
        "aten._addmm_activation",
        "aten._grouped_mm",
        "aten.addbmm",
        "aten.addmm",
        "aten.baddbmm",
        "aten.bmm",
        "aten.convolution",
        "aten.dot",
        "aten.linear",
        "aten.matmul",
        "aten.mm",
        "aten.mv",
        "transformers.grouped_mm_fallback",
    }
)
NORMS = frozenset(
    {
        "aten._fused_rms_norm",
        "aten.native_batch_norm",
        "aten.native_group_norm",
        "aten.native_layer_norm",
        "aten.rms_norm",
        "aten.rsqrt",
    }
)
FUSED_NORMS = frozenset({"aten._fused_rms_norm", "aten.native_layer_norm"})
"""Their last result is the inverse root of the variance."""
SOFTMAXES = frozenset({"aten._softmax", "aten._safe_softmax", "aten.softmax"})
ADDS = frozenset({"aten.add", "aten.add_", "aten.index_add", "aten.index_add_", "aten.sum"})
MULTIPLIES = frozenset({"aten.mul", "aten.mul_"})
MASKINGS = frozenset({"aten.masked_fill", "aten.masked_fill_", "aten.where"})
ELEMENTWISE = frozenset(
    {
        "aten._to_copy",
        "aten.add",
        "aten.add_",
        "aten.cat",
        "aten.clamp",
        "aten.clone",
        "aten.div",
        "aten.div_",
        "aten.exp",
        "aten.gelu",
        "aten.masked_fill",
        "aten.masked_fill_",
        "aten.maximum",
        "aten.minimum",
        "aten.mul",
        "aten.mul_",
        "aten.pow",
        "aten.relu",
        "aten.rsub",
        "aten.sigmoid",
        "aten.silu",
        "aten.sub",
        "aten.tanh",
        "aten.where",
        *MOVES,
    }
)
"""Every output element comes from one position of the inputs, changed or not."""

COPIES = frozenset({"aten._to_copy", "aten.clone"})
REDUCTIONS = frozenset(
    {"aten.mean", "aten.sum", "aten.var", "aten.var_mean", "aten.linalg_vector_norm"}
)


class OpKind(NamedTuple):
    """What the schema of an operation says; read once per operation."""

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
        aliases = [result.alias_info for result in schema.returns]
        is_view = name in UNDECLARED_VIEWS or any(
            alias is not None and not alias.is_write for alias in aliases
        )
        kind = _KINDS[func] = OpKind(name, is_view, name in MOVES, schema.is_mutable)
    return kind


MASK_SENTINEL = torch.finfo(torch.float32).min / 2
"""At or below it a float32 value is a mask, not a number: no activation comes near 1.7e38."""

MASK_NUMBER = -1e8
"""At or below it a value that is cast, or multiplied by one number, is a mask: code writes -1e9,
-1e10 (LongT5) or -1e30 (XLNet), and activations that float16 cannot hold are below 1e6
(https://arxiv.org/abs/2503.22329 has 7.8e5)."""
