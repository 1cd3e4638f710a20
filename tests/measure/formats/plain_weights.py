"""Formats of weights and activations from their definitions, and layers that multiply with them.

Nothing of the package is used. Formats are told of rows ``(..., inputs)`` in float32, as the
libraries that make such checkpoints compute them: compressed-tensors, bitsandbytes, torchao, vLLM's
kernels, ggml. Where inputs have a format too, layers are replaced by ones that multiply what is
read back in float32; elsewhere their weights are replaced.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn
from torch.nn.functional import linear, pad
from transformers.pytorch_utils import Conv1D

from tests.measure.formats.plain_caches import E4M3, e4m3, in_blocks
from tests.measure.formats.plain_experts import multiply_experts
from tests.measure.formats.plain_k_quants import NUM_IN_BLOCK, q4_k, q6_k

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tests.measure.formats.plain_caches import Rounded

SMALLEST_OF_VLLM = 1 / (448 * 512)
"""Of the scales of a token and of an output, in e4m3."""


class PlainWeights(NamedTuple):
    """What is read back of a matrix ``(outputs, inputs)`` and of inputs, in float32."""

    weights: Rounded
    inputs: Rounded | None = None
    """None where they stay in the dtype."""


def divided(rows: Tensor, scale: Tensor) -> Tensor:
    """By a scale that is zero where all numbers are."""
    return rows / scale.where(scale != 0, 1.0)


def multiplied(rows: Tensor, scale: Tensor) -> Tensor:
    """By its reciprocal."""
    return rows * (1 / scale.where(scale != 0, 1.0))


def in_groups(rounded: Rounded, size: int) -> Rounded:
    """Each ``size`` inputs by themselves; the last group may be shorter."""
    return lambda rows: torch.cat([rounded(part) for part in rows.split(size, dim=-1)], dim=-1)


def largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(-1, keepdim=True)


# Floats of 8 bits.


def fp8_rows(rows: Tensor) -> Tensor:
    """A scale for each row."""
    scale = (largest(rows) / 448).clamp(min=SMALLEST_OF_VLLM)
    return (rows / scale).to(E4M3).float() * scale


def fp8_matrix(rows: Tensor) -> Tensor:
    """One scale; numbers are multiplied by its reciprocal."""
    scale = rows.abs().max() / 448
    return e4m3(multiplied(rows, scale)) * scale


def fp8_group(rows: Tensor) -> Tensor:
    scale = largest(rows) / 448
    return e4m3(divided(rows, scale)) * scale


def fp8_blocks(rows: Tensor) -> Tensor:
    """Squares of 128 by 128, the last ones smaller."""
    bands = [
        torch.cat([fp8_square(square) for square in band.split(128, dim=1)], dim=1)
        for band in rows.split(128)
    ]
    return torch.cat(bands)


def fp8_square(square: Tensor) -> Tensor:
    scale = square.abs().max() / 448
    return e4m3(divided(square, scale)) * scale


# Blocks that share a power of two, or a scale in e4m3 times one for the tensor.


def e2m1(steps: Tensor) -> Tensor:
    """The nearest of eight magnitudes; halfway, the one whose code is even."""
    size = steps.abs()
    codes = (size > 0.25).int() + (size >= 0.75) + (size > 1.25) + (size >= 1.75)
    codes += (size > 2.5).int() + (size >= 3.5) + (size > 5)
    magnitudes = steps.new_tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    return magnitudes[codes].copysign(steps)


def power_of_two(amax: Tensor, *, below: int) -> Tensor:
    """That of the largest number, or the next from 1.75 times it on, divided by ``2 ** below``."""
    mantissa, exponent = torch.frexp(amax)  # from a half to one
    exponent = exponent - 1 + (mantissa >= 0.875).int() - below
    return torch.ldexp(torch.ones_like(amax), exponent.clamp(min=-127))


def mxfp8_group(rows: Tensor) -> Tensor:
    scale = power_of_two(largest(rows), below=8)
    return e4m3(rows / scale) * scale


def mxfp4_group(rows: Tensor) -> Tensor:
    scale = power_of_two(largest(rows), below=2)
    return e2m1(rows / scale) * scale


def nvfp4(rows: Tensor) -> Tensor:
    whole = 448 * 6 / rows.abs().max()
    scales = [e4m3(largest(part) / 6 * whole) / whole for part in rows.split(16, dim=-1)]
    parts = zip(rows.split(16, dim=-1), scales, strict=True)
    return torch.cat([e2m1(divided(part, scale)) * scale for part, scale in parts], dim=-1)


# Integers.


def int8_weights(rows: Tensor) -> Tensor:
    """255 steps from the largest magnitude to its negative."""
    scale = largest(rows) / 127.5
    return divided(rows, scale).round().clamp(-128, 127) * scale


def int8_of_torchao(rows: Tensor) -> Tensor:
    scale = largest(rows) / 127.5
    return multiplied(rows, scale).round().clamp(-128, 127) * scale


def int8_tokens(rows: Tensor) -> Tensor:
    """``dynamic_scaled_int8_quant_kernel`` of vLLM."""
    amax = largest(rows)
    return (rows * divided(torch.tensor(127.0), amax)).round() * (amax / 127)


def int4_group(rows: Tensor) -> Tensor:
    """A scale in bfloat16."""
    scale = (largest(rows) / 7.5).bfloat16().float()
    return divided(rows, scale).round().clamp(-8, 7) * scale


# Quantiles, and ggml.

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
"""https://github.com/bitsandbytes-foundation/bitsandbytes, ``CODE["nf4"]``"""


def nf4(rows: Tensor) -> Tensor:
    """The matrix is one row of blocks of 64."""
    codes, found = torch.tensor(NF4), []
    for part in rows.reshape(-1).split(1 << 20):
        blocks = pad(part, (0, -len(part) % 64)).view(-1, 64)
        steps = multiplied(blocks, largest(blocks)).clamp(-1, 1)
        code = (steps.unsqueeze(-1) - codes).abs().argmin(-1)
        found.append((codes[code] * largest(blocks)).flatten()[: len(part)])
    return torch.cat(found).view(rows.shape)


def in_super_blocks(rounded: Rounded, *, otherwise: str) -> Rounded:
    """What llama-quantize does where super-blocks do not fill a row: another type."""
    simple = in_blocks(otherwise)
    return lambda rows: simple(rows) if rows.shape[-1] % NUM_IN_BLOCK else rounded(rows)


MXFP4 = in_groups(mxfp4_group, 32)
Q8_0 = in_blocks("q8_0")
FORMS = {
    "int8_weight": PlainWeights(int8_of_torchao),
    "int4": PlainWeights(in_groups(int4_group, 128)),
    "fp8": PlainWeights(fp8_rows, fp8_rows),
    "fp8_tensor": PlainWeights(fp8_matrix, fp8_rows),
    "fp8_block": PlainWeights(fp8_blocks, in_groups(fp8_group, 128)),
    "mxfp8": PlainWeights(in_groups(mxfp8_group, 32), in_groups(mxfp8_group, 32)),
    "int8": PlainWeights(int8_weights, int8_tokens),
    "nf4": PlainWeights(nf4),
    "mxfp4": PlainWeights(MXFP4),
    "mxfp4_w4a4": PlainWeights(MXFP4, MXFP4),
    "nvfp4": PlainWeights(nvfp4, nvfp4),
    "nvfp4_weight": PlainWeights(nvfp4),
    "q8_0": PlainWeights(Q8_0, Q8_0),
    "q4_0": PlainWeights(in_blocks("q4_0"), Q8_0),
    "q5_0": PlainWeights(in_blocks("q5_0"), Q8_0),
    "q4_k": PlainWeights(in_super_blocks(q4_k, otherwise="q5_0"), Q8_0),
    "q6_k": PlainWeights(in_super_blocks(q6_k, otherwise="q8_0"), Q8_0),
}
"""All of them."""


# Layers.


class PlainLayer(nn.Module):
    """Weights and inputs as they are read back, multiplied in float32, and rounded once."""

    def __init__(self, layer: nn.Linear | Conv1D, plain: PlainWeights) -> None:
        super().__init__()
        rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        self.rows = plain.weights(rows.detach().float())
        self.inputs = plain.inputs
        bias: Tensor | None = layer.bias
        self.bias = None if bias is None else bias.detach().float()
        self.is_transposed = isinstance(layer, Conv1D)
        self.weight = layer.weight

    def forward(self, hidden_states: Tensor) -> Tensor:
        assert self.inputs is not None
        values = self.inputs(hidden_states.float())
        if self.is_transposed:  # the same kernel as in Conv1D
            shape = (*values.shape[:-1], self.rows.shape[0])
            columns = self.rows.T.contiguous()
            assert self.bias is not None
            found = torch.addmm(self.bias, values.view(-1, values.shape[-1]), columns).view(shape)
        else:
            found = linear(values, self.rows, self.bias)
        return found.to(hidden_states.dtype)


def layers_in(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Linear layers inside the decoder, and encoder, layers, with where they are."""
    stacks = ("layers.", "h.", "block.")
    return [
        (parent, key, layer)
        for name, parent in model.named_modules()
        for key, layer in parent.named_children()
        if isinstance(layer, nn.Linear | Conv1D)
        and any(f".{stack}" in f".{name}." for stack in stacks)
        and key != "router"
    ]


def experts_in(model: nn.Module) -> list[nn.Parameter]:
    return [
        each for name, each in model.named_parameters() if "experts." in name and each.dim() == 3
    ]


@torch.no_grad()
def store(model: nn.Module, plain: PlainWeights) -> None:
    """Makes a model compute in a format."""
    if plain.inputs is not None:
        for parent, key, layer in layers_in(model):
            setattr(parent, key, PlainLayer(layer, plain))
        multiply_experts(model, weights=plain.weights, inputs=plain.inputs)
        return
    for _, _, layer in layers_in(model):
        rows = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
        rows.copy_(plain.weights(rows.float()))
    for experts in experts_in(model):
        for matrix in experts:
            matrix.copy_(plain.weights(matrix.float()))


WEIGHTS: dict[str, Callable[[nn.Module], None]] = {
    name: functools.partial(store, plain=plain) for name, plain in FORMS.items()
}
