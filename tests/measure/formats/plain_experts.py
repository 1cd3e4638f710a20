"""Experts of plain transformers with matrices and inputs that are rounded, one after the other.

Nothing of the package is used. Transformers multiplies with all experts at once; here each
multiplies with the tokens that were sent to it, in float32, and the product is rounded once.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

TRANSPOSED = ("GptOssExperts", "Llama4TextExperts")
"""Their matrices have inputs along the second to last dimension."""


def multiply_experts(
    model: nn.Module,
    *,
    weights: Callable[[Tensor], Tensor],
    inputs: Callable[[Tensor], Tensor],
) -> None:
    """Makes every module of experts multiply in a format.

    Args:
        model: it is changed.
        weights: what is read back of a matrix ``(outputs, inputs)``, in float32.
        inputs: the same of ``(..., inputs)``; both are given float32.
    """
    for module in model.modules():
        name = type(module).__name__
        if not name.endswith("Experts"):
            continue
        experts: Any = module
        experts.stacks = {
            key: _stack(stack.detach().float(), weights, is_transposed=name in TRANSPOSED)
            for key, stack in module.named_parameters()
            if stack.dim() == 3
        }
        experts.rounded = lambda values: inputs(values.float())
        experts.forward = types.MethodType(FORWARDS.get(name, _routed), module)


def _stack(stack: Tensor, weights: Callable[[Tensor], Tensor], *, is_transposed: bool) -> Tensor:
    if not is_transposed:
        return torch.stack([weights(matrix) for matrix in stack])
    rows = torch.stack([weights(matrix.T.contiguous()) for matrix in stack])
    return rows.transpose(1, 2).contiguous()


def _routed(experts: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    each = chosen.shape[-1]
    sent_to, order = torch.sort(chosen.reshape(-1))
    answers: list[Tensor] = []
    for number in sent_to.unique().tolist():
        rows = order[sent_to == number]
        inner = _product(experts, "gate_up_proj", hidden[rows // each], number)
        inner = experts._apply_gate(inner)  # noqa: SLF001  what transformers calls
        outer = _product(experts, "down_proj", inner, number)
        answers.append(outer * weights.reshape(-1)[rows, None])
    in_order = torch.cat(answers)[order.argsort()]
    return in_order.view(len(hidden), each, -1).sum(dim=1).to(hidden.dtype)


def _product(experts: Any, key: str, inputs: Tensor, number: int) -> Tensor:
    matrix, values = experts.stacks[key][number], experts.rounded(inputs)
    is_transposed = type(experts).__name__ in TRANSPOSED
    found: Tensor = values @ matrix if is_transposed else linear(values, matrix)
    found = found.to(inputs.dtype)
    biases = getattr(experts, f"{key}_bias", None)
    return found if biases is None else found + biases[number]


def _batched(experts: Any, hidden: Tensor) -> Tensor:
    """Llama 4: every expert has as many rows as there are tokens."""
    rows = hidden.view(experts.num_experts, -1, experts.hidden_size)
    inner = torch.bmm(experts.rounded(rows), experts.stacks["gate_up_proj"]).to(hidden.dtype)
    gate, up = inner.chunk(2, dim=-1)
    inputs = experts.rounded(up * experts.act_fn(gate))
    outer = torch.bmm(inputs, experts.stacks["down_proj"]).to(hidden.dtype)
    return outer.view(-1, experts.hidden_size)


def _in_turn(experts: Any, inputs: Tensor, sizes: Any) -> Tensor:
    """JetMoE: tokens are sorted by expert before."""
    pieces = zip(inputs.split(sizes), experts.stacks["weight"], strict=True)
    return torch.cat(
        [linear(experts.rounded(one), matrix).to(inputs.dtype) for one, matrix in pieces]
    )


FORWARDS: dict[str, Callable[..., Tensor]] = {
    "Llama4TextExperts": _batched,
    "JetMoeParallelExperts": _in_turn,
}
