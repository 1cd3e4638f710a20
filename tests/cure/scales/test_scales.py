"""Whatever the equations of a model allow leaves it the same model, bit for bit."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from precheck.checkpoint.rewriting import block_of
from precheck.cure.scales.blocks import blocks
from precheck.cure.scales.config_numbers import config_numbers, find_settings
from precheck.cure.scales.equations import find_scales
from precheck.cure.scales.forms import Kind, Reason
from precheck.cure.scales.solve import choose
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.trace.flow import trace_flow, traced_batches
from precheck.measure.watch.parameters import Parameters
from precheck.measure.watch.peaks import Peaks
from precheck.records.configuration import Configuration
from precheck.records.outcomes.fix import Extent
from precheck.records.precision import Dtype
from tests.tiny_models import (
    TINY,
    architectures,
    attn_implementations,
    tiny,
    tiny_config,
    tiny_inputs,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedConfig, PreTrainedModel

    from precheck.cure.scales.forms import ScaledResult, Scales
    from precheck.cure.scales.solve import Choice
    from precheck.measure.trace.flow import Flow


def flow_of(model: nn.Module, attn_implementation: str = "sdpa") -> Flow:
    skeleton = Skeleton(
        configuration=Configuration(dtype=Dtype.BFLOAT16, attn_implementation=attn_implementation),
        model=model.to(torch.bfloat16),
        requested_attn_implementation=attn_implementation,
        parameters=Parameters.of(model),
    )
    return trace_flow(skeleton, traced_batches(skeleton))


def scales_of(name: str, attn_implementation: str) -> Scales:
    def traced(config: PreTrainedConfig) -> Flow:
        with torch.device("meta"):
            empty: PreTrainedModel = type(model)(config)
        empty.set_attn_implementation(attn_implementation)
        return flow_of(empty, attn_implementation)

    model = tiny(name)
    config = tiny_config(name)
    flow = traced(config)
    changed = {
        number: traced(number.perturbed(config))
        for number in config_numbers(config)
        if not number.is_whole
    }
    settings = find_settings(flow, changed)
    return find_scales(flow, settings=settings, dtype=torch.bfloat16)


def rescaled(name: str, scales: Scales, choice: Choice) -> PreTrainedModel:
    model = tiny(name)
    config = model.config
    for number in config_numbers(config):
        for unknown, power in choice.exponents.items():
            if unknown.kind is Kind.SETTING and unknown.name == number.name:
                config = number.replaced(config, number.value * 2.0 ** (power * unknown.step))
    twin: PreTrainedModel = type(model)(config).eval()
    twin.set_attn_implementation(model.config._attn_implementation)  # noqa: SLF001
    twin.load_state_dict(model.state_dict())
    parameters = dict(twin.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for unknown, power in choice.exponents.items():
            if unknown.kind is Kind.SETTING:
                continue
            for block in blocks(unknown, scales.partitions):
                part = block_of(parameters[unknown.name], block)
                part.copy_((part.double() + unknown.shift) * 2.0**power - unknown.shift)
    return twin


@torch.no_grad()
def logits(model: PreTrainedModel, name: str, attn_implementation: str) -> torch.Tensor:
    model.set_attn_implementation(attn_implementation)
    result: torch.Tensor = model(**tiny_inputs(name)).logits
    return result


def too_large(result: ScaledResult, peak: float, peaks: Peaks) -> None:
    """The lane of the result reaches the peak; the others are small."""
    peaks.largest[result.key] = max(peak, peaks.largest.get(result.key, 0.0))
    if result.elements is not None:
        sizes = torch.where(result.elements, peak, 1.0)
        peaks.by_element[result.key] = sizes.maximum(peaks.by_element.get(result.key, sizes))


CASES = architectures(
    ((name, attn) for name in TINY for attn in attn_implementations(name)), unpinned=["gemma2"]
)


@pytest.mark.parametrize(("name", "attn"), CASES)
def test_any_exact_rescaling_leaves_the_model_the_same(name: str, attn: str) -> None:
    scales = scales_of(name, attn)
    before = logits(tiny(name), name, attn)
    chooser = random.Random(0)  # noqa: S311  no secret
    rows = [result for result in scales.results if result.form]
    num_changed = 0
    for _ in range(4):
        # some results are too large by some bits, and something has to be done about it
        peaks = Peaks()
        for row in chooser.sample(rows, 3):
            too_large(row, 2.0 ** chooser.randint(14, 20), peaks)
        choice = choose(scales, peaks=peaks, limits=Dtype.FLOAT16.limits, headroom_bits=1.0)
        num_changed += bool(choice.exponents)
        after = logits(rescaled(name, scales, choice), name, attn)
        if choice.is_exact:
            assert torch.equal(after, before), choice.exponents
        elif not choice.loose:  # 1 + w is rounded
            assert (after - before).abs().max() < 1e-4
    assert num_changed


class Small(nn.Module):
    """Reads an embedding and gives logits; what happens in between is given."""

    def __init__(self, between: Callable[[Small, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 8)
        self.inner = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 32, bias=False)
        self._between = between

    def forward(self, input_ids: torch.Tensor) -> Any:
        hidden = self._between(self, self.embed(input_ids))
        return (self.head(self.norm(hidden)),)


def reasons(between: Callable[[Small, torch.Tensor], torch.Tensor]) -> set[Reason]:
    """Why the embedding's unknown is constrained, apart from the epsilon of the norm."""
    scales = find_scales(flow_of(Small(between)), settings={}, dtype=torch.bfloat16)
    return {
        equation.reason
        for equation in scales.equations
        if any(unknown.name == "embed.weight" for unknown, _ in equation.form.terms)
        and equation.reason is not Reason.EPSILON
    }


FREE: dict[str, Callable[[Small, torch.Tensor], torch.Tensor]] = {
    "nothing": lambda _, x: x,
    "relu": lambda _, x: x.relu(),
    "clamp at zero": lambda _, x: x.clamp(min=0),
    "a root of a square": lambda _, x: (x**2).sqrt(),
    "divided by its size": lambda _, x: x / x.norm(dim=-1, keepdim=True),
    "rms norm": lambda _, x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(),
    "where it is above zero": lambda _, x: torch.where(x > 0, x, 2 * x),
    "masked": lambda _, x: x.masked_fill(torch.ones(8, dtype=torch.bool), 0.0),
    "written into zeros": lambda _, x: torch.zeros_like(x).copy_(x),
    "added to zeros in place": lambda _, x: torch.zeros_like(x).add_(x),
    "the larger half": lambda _, x: x.sort(dim=-1).values,
}


@pytest.mark.parametrize("name", FREE)
def test_homogeneous_operations_require_nothing(name: str) -> None:
    assert reasons(FREE[name]) == set()


PINNED: dict[str, tuple[Callable[[Small, torch.Tensor], torch.Tensor], Reason]] = {
    "silu": (lambda _, x: torch.nn.functional.silu(x), Reason.NOT_LINEAR),
    "exp": (lambda _, x: x.exp(), Reason.NOT_LINEAR),
    "a power of x": (lambda _, x: 2.0**x, Reason.NOT_LINEAR),
    "rounded": (lambda _, x: x.round(), Reason.NOT_LINEAR),
    "rounded while divided": (
        lambda _, x: torch.div(x, 2.0, rounding_mode="floor"),
        Reason.NOT_LINEAR,
    ),
    "as an integer": (lambda _, x: x + x.long(), Reason.NOT_LINEAR),
    "clamped": (lambda _, x: x.clamp(-10, 10), Reason.CLAMP),
    "above a threshold": (lambda _, x: x * (x > 0.5), Reason.CLAMP),
    "a constant added": (lambda _, x: x + 1.0, Reason.CONSTANT),
    "a small constant added": (lambda _, x: x + 1e-6, Reason.CONSTANT),
    "a tensor added": (lambda _, x: x + torch.ones(8, dtype=x.dtype), Reason.CONSTANT),
    "zeros and one": (lambda _, x: x + (torch.zeros_like(x) + 1.0), Reason.CONSTANT),
    "zeros with ones in them": (
        lambda _, x: (
            x + torch.zeros_like(x).scatter(-1, torch.zeros(1, 1, 1, dtype=torch.int64), 1.0)
        ),
        Reason.CONSTANT,
    ),
    "zeros filled": (lambda _, x: x + torch.zeros_like(x).fill_(1.0), Reason.CONSTANT),
    "masked by a number": (
        lambda _, x: x.masked_fill(torch.ones(8, dtype=torch.bool), 3.0),
        Reason.CONSTANT,
    ),
    "its square added": (lambda _, x: x + x * x, Reason.EQUAL),
    "its half beside its square": (
        lambda _, x: torch.cat([x[..., :4], x[..., 4:] ** 2], -1),
        Reason.EQUAL,
    ),
    "its mean beside its square": (
        lambda _, x: x.mean(-1, keepdim=True) + (x**2).sum(-1, keepdim=True) + 0 * x,
        Reason.EQUAL,
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_other_operations_pin_and_say_why(name: str) -> None:
    between, reason = PINNED[name]
    assert reason in reasons(between)


def test_halves_of_one_product_have_unknowns_of_their_own() -> None:
    def gated(model: Small, x: torch.Tensor) -> torch.Tensor:
        gate, up = model.inner(x).chunk(2, dim=-1)
        return torch.cat([torch.sigmoid(gate) * up] * 2, dim=-1)

    scales = find_scales(flow_of(Small(gated)), settings={}, dtype=torch.bfloat16)
    parts = {
        extent
        for result in scales.results
        for unknown, _ in result.form.terms
        if unknown.name == "inner.weight"
        for (extent,) in blocks(unknown, scales.partitions)
    }
    first, second = Extent(dim=-2, start=0, stop=4), Extent(dim=-2, start=4, stop=8)
    assert parts == {first, second}
    (pinned,) = (one for one in scales.equations if one.reason is Reason.NOT_LINEAR)
    embedding, gate = (blocks(unknown, scales.partitions) for unknown, _ in pinned.form.terms)
    assert (embedding, gate) == (((),), ((first,),))


FUSED: dict[str, tuple[Callable[[torch.Tensor], Sequence[torch.Tensor]], list[int]]] = {
    "one after the other": (lambda x: x.chunk(2, dim=-1), [4, 5, 6, 7]),
    "unequal": (lambda x: x.split([5, 3], dim=-1), [5, 6, 7]),
    "cut out": (lambda x: (x[..., :5], x[..., 5:]), [5, 6, 7]),
    "in pairs": (lambda x: (x[..., ::2], x[..., 1::2]), [1, 3, 5, 7]),
    "a row each": (lambda x: x.unflatten(-1, (2, 4)).unbind(dim=-2), [4, 5, 6, 7]),
    "in each head": (lambda x: x.unflatten(-1, (2, 4)).chunk(2, dim=-1), [2, 3, 6, 7]),
    "picked in each head": (
        lambda x: [x.unflatten(-1, (2, 2, 2))[..., i, :].flatten(-2) for i in range(2)],
        [2, 3, 6, 7],
    ),
    "picked by a list": (
        lambda x: (x.unflatten(-1, (4, 2))[..., :-1, :], x.unflatten(-1, (4, 2))[..., [-1], :]),
        [6, 7],
    ),
    "transposed first": (
        lambda x: [part.transpose(1, 2) for part in x.transpose(1, 2).chunk(2, dim=1)],
        [4, 5, 6, 7],
    ),
    "joined and cut again": (
        lambda x: torch.cat([x[..., 4:], x[..., :4]], dim=-1).split([4, 4], dim=-1)[::-1],
        [4, 5, 6, 7],
    ),
}
"""Ways to fuse, and the rows of the matrix that make the second part."""


@pytest.mark.parametrize("name", FUSED)
def test_the_second_part_of_a_fused_product_has_a_factor_of_its_own(name: str) -> None:
    """The first is read by a sigmoid and may not be scaled; the second is normed away."""
    apart, expected = FUSED[name]

    def gated(model: Small, x: torch.Tensor) -> torch.Tensor:
        gate, up = apart(model.inner(x))
        up = up * torch.sigmoid(gate).mean()
        return torch.cat([up.flatten(2)] * 8, dim=-1)[..., :8]

    scales = find_scales(flow_of(Small(gated)), settings={}, dtype=torch.bfloat16)
    (product,) = {result.key for result in scales.results if result.key[:2] == ("inner", "aten.mm")}
    peaks = Peaks()
    for result in scales.results:
        if result.key == product:
            assert result.elements is not None
            columns = result.elements.expand(1, 8).flatten().nonzero().flatten().tolist()
            too_large(result, 2e5 if columns[-1] in expected else 1.0, peaks)
    choice = choose(scales, peaks=peaks, limits=Dtype.FLOAT16.limits, headroom_bits=2.0)
    assert not choice.overflowing
    rows = {
        row
        for unknown, power in choice.exponents.items()
        if (unknown.name, power) == ("inner.weight", -4)
        for (extent,) in blocks(unknown, scales.partitions)
        for row in range(extent.start, extent.stop)
    }
    assert sorted(rows) == expected


def test_a_weight_used_with_and_without_a_constant_stays() -> None:
    def twice(model: Small, x: torch.Tensor) -> torch.Tensor:
        return x * (1 + model.norm.weight)

    scales = find_scales(flow_of(Small(twice)), settings={}, dtype=torch.bfloat16)
    pinned = {
        unknown.kind
        for equation in scales.equations
        if len(equation.form.terms) == 1
        for unknown, _ in equation.form.terms
        if unknown.name == "norm.weight"
    }
    assert pinned == {Kind.WEIGHT, Kind.SHIFTED_WEIGHT}
