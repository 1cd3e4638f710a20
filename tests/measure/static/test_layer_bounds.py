"""Bounds from norms hold for every input, are as tight as the formula, and need the right width."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import precheck
from precheck.checkpoint.architecture import find_architecture
from precheck.judge.report import judge
from precheck.measure.static.layer_bounds import layer_bounds
from precheck.measure.static.traced_layers import trace_layers
from precheck.render import RENDERERS, Format
from precheck.render.formats.console_report import render_console
from tests.tiny_models import save_checkpoint, tiny, tiny_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from precheck.records.outcomes.layer_bounds import LayerBound
    from precheck.records.report import Report

HEAD, HEADS, KEY_HEADS, HIDDEN = 16, 4, 2, 64
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_HEADS,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def olmo2() -> Any:
    return tiny_of(transformers.Olmo2Config(**SIZES))


def phi() -> Any:
    """LayerNorms of queries and keys, with biases."""
    return tiny_of(transformers.PhiConfig(**SIZES, qk_layernorm=True))


def scaled_norms(model: Any, factor: float = 3.0) -> Any:
    """Norms of other sizes in each layer, and random biases."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                random = torch.rand(parameter.shape, generator=generator) - 0.3
                parameter.copy_(random * factor if "bias" in name else random + 1)
    return model


def bounds(model: Any, *, with_embedding: bool = False) -> dict[int, LayerBound]:
    half = model.half()
    numbers = {
        name: each.detach().float()
        for name, each in half.named_parameters()
        if each.dim() == 1 or (with_embedding and "embed_tokens" in name)
    }
    traced = trace_layers(half, find_architecture(half))
    return {row.layer: row for row in layer_bounds(traced, numbers)}


def largest_scores(model: Any, gain: float) -> dict[int, float]:
    """What random weights of any size reach, in float32: a query and a key per token and head."""
    model = model.float().eval()
    model.set_attn_implementation("eager")
    products: list[float] = []
    matmul = torch.matmul

    def watched(first: Any, second: Any, **rest: Any) -> Any:
        product = matmul(first, second, **rest)
        if product.shape[-1] == product.shape[-2] == TOKENS:
            products.append(float(product.abs().max()))
        return product

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.mul_(gain)
        torch.matmul = watched  # type: ignore[assignment]
        try:
            model(input_ids=torch.arange(5, 5 + TOKENS)[None], use_cache=False)
        finally:
            torch.matmul = matmul
    return dict(enumerate(products))


TOKENS = 29


def norm_weights(model: Any, layer: int) -> float:
    """The largest product of weights of both norms that meet in a head."""
    attention = model.model.layers[layer].self_attn
    shift = 1.0 if "Gemma" in type(model).__name__ else 0.0
    query, key = (
        (norm.weight.detach().float() + shift).abs().view(-1, HEAD).amax(-1)
        for norm in (attention.q_norm, attention.k_norm)
    )
    return float((query * key.repeat_interleave(max(1, len(query) // len(key)))).max())


@pytest.mark.parametrize(
    ("make", "width"),
    [
        pytest.param(lambda: tiny("qwen3"), HEAD, id="qwen3"),
        pytest.param(lambda: tiny("gemma3"), HEAD, id="gemma3"),
        pytest.param(olmo2, math.sqrt(HEADS * KEY_HEADS) * HEAD, id="olmo2"),
    ],
)
def test_scores_are_bounded_by_the_width_of_their_norms(make: Any, width: float) -> None:
    model = scaled_norms(make())
    rows = bounds(model)
    assert sorted(rows) == [0, 1, 2]
    reached = largest_scores(model, gain=100.0)
    assert len(reached) == 3
    for layer, row in rows.items():
        weights = norm_weights(model, layer)
        assert row.scores is not None
        assert reached[layer] <= row.scores
        assert width * weights <= row.scores <= 1.03 * width * weights
        assert row.scaled_scores == pytest.approx(row.scores / math.sqrt(HEAD), rel=1e-3)


def test_a_layer_norm_adds_its_bias_to_scores() -> None:
    model = scaled_norms(phi())
    rows = bounds(model)
    reached = largest_scores(model, gain=100.0)
    for layer, row in rows.items():
        assert row.scores is not None
        assert reached[layer] <= row.scores
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.k_layernorm.bias.fill_(50.0)
    larger = bounds(model)
    assert all((larger[layer].scores or 0) > 5 * (row.scores or 0) for layer, row in rows.items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "bloom"])
def test_without_such_norms_nothing_is_bounded(name: str) -> None:
    assert bounds(tiny(name)) == {}


@pytest.mark.parametrize("make", [lambda: tiny("gemma2"), lambda: tiny("gemma3"), olmo2])
def test_what_layers_add_is_bounded_and_reached(make: Any) -> None:
    model = scaled_norms(make())
    rows = bounds(model, with_embedding=True)
    model.float().eval()
    with torch.no_grad():
        states = model.model(
            input_ids=torch.arange(5, 300)[None], output_hidden_states=True
        ).hidden_states
    for layer in range(2):  # the last one is taken after the final norm
        row = rows[layer]
        assert row.added is not None
        assert row.added_so_far is not None
        assert row.residual is not None
        assert float((states[layer + 1] - states[layer]).abs().max()) <= row.added
        assert float((states[layer + 1] - states[0]).abs().max()) <= row.added_so_far
        assert float(states[layer + 1].abs().max()) <= row.residual <= 2 * row.added_so_far
    after_norm = rows[0].added
    assert after_norm is not None
    largest = 2 * math.sqrt(HIDDEN) * 2.8  # two branches, weights of at most 1.7 (Gemma adds 1)
    assert largest / 4 < after_norm <= largest


def test_the_stream_is_bounded_with_the_embedding_only() -> None:
    rows = bounds(scaled_norms(tiny("gemma3")))
    assert all(row.added_so_far is not None and row.residual is None for row in rows.values())


def test_a_layer_whose_norm_is_missing_ends_the_sum() -> None:
    model = scaled_norms(tiny("gemma3")).half()
    numbers = {
        name: each.detach().float()
        for name, each in model.named_parameters()
        if each.dim() == 1 and "layers.1.post_attention" not in name
    }
    traced = trace_layers(model, find_architecture(model))
    rows = {row.layer: row for row in layer_bounds(traced, numbers)}
    assert [rows[layer].added is None for layer in range(3)] == [False, True, False]
    assert [rows[layer].added_so_far is None for layer in range(3)] == [False, True, True]


def fill(model: nn.Module, part: str, value: float) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(part):
                parameter.fill_(value)
    return model


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tiny("gemma3"), tmp_path_factory.mktemp("gemma3"), tokenizer=False)


@pytest.fixture(scope="module")
def report(gemma3: Path) -> Report:
    return precheck.scan(gemma3, static=True)


def messages(report: Report, rows: dict[int, LayerBound] | None = None) -> dict[str, str]:
    """What is said of bounds: those of the report, or others in their place."""
    if rows is not None:
        told = replace(report.measurements, layer_bounds=tuple(rows.values()))
        report = judge(told, gpus=(), version="0")
    found = [each for each in report.findings if each.code in {"PC703", "PC704"}]
    assert all((each.severity, each.confidence) == ("note", "proved") for each in found)
    return {each.code: each.message for each in found}


def test_findings_say_what_is_proved(report: Report) -> None:
    said = messages(report)
    assert "In all 3 decoder layers" in said["PC703"]
    assert "is proved too" in said["PC703"]
    assert "--full reads" in said["PC704"]


def test_with_the_embedding_the_stream_is_proved(gemma3: Path) -> None:
    full = precheck.scan(gemma3, static=True, full=True)
    assert "it cannot overflow in float16" in messages(full)["PC704"]
    assert all(row.residual is not None for row in full.layer_bounds)


def test_findings_say_where_the_proof_ends(report: Report) -> None:
    large = fill(tiny("gemma3"), "post_feedforward_layernorm.weight", 4000.0)
    rows = bounds(large, with_embedding=True)
    assert "before layer 2 it cannot" in messages(report, rows)["PC704"]
    one = bounds(fill(tiny("gemma3"), "layers.2.self_attn.q_norm.weight", 60000.0))
    assert "In 2 of 3 decoder layers" in messages(report, one)["PC703"]
    every = bounds(fill(tiny("gemma3"), "self_attn.q_norm.weight", 60000.0))
    assert "PC703" not in messages(report, every)


def test_tables_show_ranges_and_bounds(report: Report) -> None:
    plain = replace(report, layer_bounds=())
    for render in (
        partial(render_console, width=120, colour=False),
        RENDERERS[Format.MARKDOWN].render,
    ):
        text = render(report).replace("\\", "")
        assert "Norms and biases" in text
        assert "post_feedforward_layernorm.weight" in text
        assert "Proved for every text" in text
        assert "added so far" in text
        assert "Proved for every text" not in render(plain)
