"""Bounds of whole models, tried with planted weights; an unsound rule lets a value through."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.measure.bounds import attention, elementwise, norms, pairs, products, rules
from precheck.measure.bounds.forms import Known, Wave
from precheck.records.precision import Dtype
from tests.measure.bounds.breaking import Tried, interpreted, skeleton_of, texts, try_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def made(name: str, **settings: Any) -> Any:
    """A model of one layer, its parameters drawn large enough for its bounds to be reached."""
    config_class = getattr(transformers, f"{name}Config")
    suffix = "Model" if name == "Bert" else "ForCausalLM"
    torch.manual_seed(0)
    model = getattr(transformers, name + suffix)(config_class(**_SIZES, **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return model


def along(model: Any, vector: Tensor) -> None:
    """Makes every token's embedding that vector, up to a little."""
    weight = model.get_input_embeddings().weight
    weight.copy_(vector + 1e-3 * torch.randn(weight.shape))


def with_key_bias(model: Any) -> None:
    model.model.layers[0].self_attn.k_proj.bias.fill_(300.0)


def with_long_rotations(model: Any) -> None:
    layer = model.model.layers[0]
    row = layer.self_attn.q_proj.weight[0]
    along(model, row * layer.input_layernorm.weight)
    layer.self_attn.q_proj.weight[1:] = 0


def in_one_head(model: Any) -> None:
    model.model.layers[0].self_attn.q_proj.weight[12:] = 0


def with_heads_that_cancel(model: Any) -> None:
    """Both heads have the same values; one of them is subtracted."""
    own = model.model.layers[0].self_attn
    own.v_proj.weight.copy_(own.v_proj.weight[:12].repeat(2, 1))
    own.o_proj.weight.zero_()
    own.o_proj.weight[:12, :12] = torch.eye(12)
    own.o_proj.weight[:12, 24:36] = -torch.eye(12)
    own.q_proj.weight.mul_(8.0)


def with_norm_bias(model: Any) -> None:
    model.embeddings.LayerNorm.bias.fill_(50.0)


def in_one_lane(model: Any) -> None:
    along(model, torch.eye(48)[5] * 100)
    model.model.layers[0].input_layernorm.weight.fill_(1.0)


def towards_one_product(model: Any) -> None:
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight.zero_()
    row = torch.randn(48)
    layer.mlp.gate_proj.weight.copy_(row.expand(32, 48))
    layer.mlp.up_proj.weight.copy_(row.expand(32, 48))
    layer.mlp.down_proj.weight.fill_(1.0)
    layer.post_attention_layernorm.weight.fill_(1.0)
    along(model, row)


def towards_one_branch(model: Any) -> None:
    towards_one_product(model)
    model.model.layers[0].mlp.down_proj.weight.fill_(0.01)


def no_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    real = products.weight_product
    monkeypatch.setattr(
        rules, "weight_product", lambda x, weight, _bias, **how: real(x, weight, None, **how)
    )


def no_attention_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    real = elementwise.scaled

    def forgetful(tensor: Known, factor: float) -> Known:
        is_wave = isinstance(tensor.form, Wave)
        return tensor if is_wave else real(tensor, factor)

    monkeypatch.setattr(elementwise, "scaled", forgetful)


def norm_of_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    real = norms.reduced

    def of_a_head(step: Any, statistic: Any, *, is_mean: bool, num_elements: int) -> Any:
        found = real(step, statistic, is_mean=is_mean, num_elements=num_elements)
        return replace(found, radius=12.0**0.5) if "q_norm" in step.op.module else found

    monkeypatch.setattr(norms, "reduced", of_a_head)


def one_token_for_all_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "groups_of", torch.zeros_like)


def no_norm_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    real = norms.fused_norm

    def without(step: Any, **how: Any) -> Known:
        tensor, scale, _ = step.known
        args = (tensor, step.args[1], scale, None, step.args[4])
        return real(replace(step, args=args), **how)

    monkeypatch.setattr(norms, "fused_norm", without)


def no_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precheck.measure.bounds.interpreter.num_roundings", lambda _step: 0)
    monkeypatch.setattr(norms, "unit_roundoff", lambda _dtype: 0.0)


def half_a_gated_product(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pairs.pair_bound
    monkeypatch.setattr(elementwise, "pair_bound", lambda *images: real(*images) / 2)


def half_a_down_proj(monkeypatch: pytest.MonkeyPatch) -> None:
    real = pairs.paired_product
    monkeypatch.setattr(products, "paired_product", lambda *parts, **how: real(*parts, **how) / 2)


def the_first_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    real = elementwise.add

    def first_only(step: Any) -> Known:
        first, second = step.args[:2]
        known = real(step)
        if not isinstance(second, Known) or known.form is not None:
            return known
        return replace(known, magnitudes=first.bound)

    monkeypatch.setitem(rules.RULES, "add", first_only)


def no_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elementwise, "rotated_bound", lambda form: form.first.bound)


def half_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention.vector_norms
    monkeypatch.setattr(attention, "vector_norms", lambda *parts: real(*parts) / 4)


def with_one_large_expert(model: Any) -> None:
    """The last expert alone is large: no token has to be its own for the bound to hold."""
    layer = model.model.layers[0]
    experts = layer.mlp.experts
    experts.gate_up_proj[:-1] *= 0.01
    experts.down_proj[:-1] *= 0.01
    layer.mlp.gate.weight.zero_()
    layer.mlp.gate.weight[-1] = layer.post_attention_layernorm.weight
    along(model, torch.ones(48))


def the_first_expert(monkeypatch: pytest.MonkeyPatch) -> None:
    real = products.grouped_product
    monkeypatch.setattr(rules, "grouped_product", lambda x, w, **how: real(x, w[:1], **how))


_YARN = {
    "rope_parameters": {
        "rope_type": "yarn",
        "factor": 4.0,
        "rope_theta": 1e4,
        "attention_factor": 5.0,
        "original_max_position_embeddings": 16,
    }
}
PLANTS: dict[str, tuple[str, dict[str, Any], Callable[[Any], None], Callable[[Any], None]]] = {
    "bias": ("Qwen2", {}, with_key_bias, no_bias),
    "attention_scaling": ("Llama", _YARN, with_long_rotations, no_attention_scaling),
    "all_heads_norm": ("Olmo2", {}, in_one_head, norm_of_each_head),
    "heads": ("Llama", {}, with_heads_that_cancel, one_token_for_all_heads),
    "layer_norm_bias": ("Bert", {}, with_norm_bias, no_norm_bias),
    "rounding": ("Llama", {}, in_one_lane, no_rounding),
    "gated_product": ("Llama", {}, towards_one_product, half_a_gated_product),
    "down_proj": ("Llama", {}, towards_one_product, half_a_down_proj),
    "residual": ("Llama", {}, towards_one_branch, the_first_branch),
    "rotation": ("Llama", {}, with_long_rotations, no_rotation),
    "scores": ("Qwen2", {}, with_key_bias, half_a_score),
    "experts": ("Mixtral", {"num_local_experts": 4}, with_one_large_expert, the_first_expert),
}


def tried(name: str, settings: dict[str, Any], plant: Callable[[Any], None]) -> Tried:
    model = made(name, **settings)
    with torch.no_grad():
        plant(model)
    model.set_attn_implementation("eager")
    skeleton = skeleton_of(model.to(torch.float16), attn="eager")
    return try_model(skeleton, texts(skeleton, num=2, seed=1))


@pytest.mark.parametrize("name", PLANTS)
def test_an_unsound_rule_is_caught_and_the_sound_one_holds(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings, plant, unsound = PLANTS[name]
    sound = tried(kind, settings, plant)
    assert sound.broken == []
    assert sound.num_elements > 10_000
    unsound(monkeypatch)
    assert tried(kind, settings, plant).broken


def test_a_small_healthy_model_is_proved_in_every_operation() -> None:
    model = made("Llama").to(torch.float16)
    model.set_attn_implementation("eager")
    assert [
        one.op.name
        for one in interpreted(skeleton_of(model, attn="eager")).bounded
        if not one.is_proved
    ] == []


def test_a_key_bias_that_overflows_is_open() -> None:
    model = made("Qwen2")
    with torch.no_grad():
        with_key_bias(model)
        model.get_submodule("model.layers.0.self_attn.q_proj").bias.fill_(300.0)
    model.set_attn_implementation("eager")
    recording = interpreted(skeleton_of(model.to(torch.float16), attn="eager"))
    opened = {(one.op.module, one.op.name) for one in recording.bounded if not one.is_proved}
    assert ("model.layers.0.self_attn", "aten.bmm") in opened


def test_it_fits_into_bfloat16() -> None:
    model = made("Qwen2").to(torch.bfloat16)
    skeleton = skeleton_of(model, attn="sdpa", dtype=Dtype.BFLOAT16)
    assert all(one.is_proved for one in interpreted(skeleton).bounded)
    assert try_model(skeleton, texts(skeleton, num=2, seed=1)).broken == []
