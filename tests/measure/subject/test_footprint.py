"""Sizes that are told without weights, against what a real forward really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn

from precheck.checkpoint.architecture import find_architecture
from precheck.measure.models.quantized import num_stored
from precheck.measure.subject.footprint import attention_facts, cache_size, widths
from tests.tiny_models import TINY, architectures, tiny

KEEP_A_CACHE = [
    *architectures((name for name in TINY if name not in {"bert", "opt"}), unpinned=["gemma2"]),
    pytest.param(
        "opt",
        marks=pytest.mark.pinned(
            "in the tested transformers its forward without values tells a cache"
        ),
    ),
]


def elements_kept(model: Any, length: int) -> int:
    """Of the cache after a prompt, on real tensors."""
    ids = torch.randint(5, 300, (1, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    parts = (
        (cache.self_attention_cache, cache.cross_attention_cache)
        if hasattr(cache, "cross_attention_cache")
        else (cache,)
    )
    return sum(layer.keys.numel() + layer.values.numel() for part in parts for layer in part.layers)


@pytest.mark.parametrize("name", KEEP_A_CACHE)
@pytest.mark.parametrize("length", [3, 12])
def test_the_cache_is_what_a_forward_keeps(name: str, length: int) -> None:
    model = tiny(name)
    found = cache_size(model, find_architecture(model))
    assert found is not None
    told = (
        found.elements_per_token * length
        + found.windowed_elements_per_token * min(length, found.window)
        + found.fixed_elements
    )
    assert told == elements_kept(model, length)


@pytest.mark.parametrize("name", architectures(["gemma2", "gemma3"]))
def test_a_window_bounds_its_layers(name: str) -> None:
    model = tiny(name)
    found = cache_size(model, find_architecture(model))
    assert found is not None
    assert found.window == model.config.get_text_config().sliding_window
    kept = elements_kept(model, 200)
    told = found.elements_per_token * 200 + found.windowed_elements_per_token * found.window
    # transformers keeps one token less than the window, since the next one is on its way
    assert told - found.windowed_elements_per_token == kept


def test_compressed_keys_and_states_are_counted_as_they_are_kept() -> None:
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 320,
        "pad_token_id": None,
    }
    deepseek = transformers.DeepseekV3ForCausalLM(
        transformers.DeepseekV3Config(
            **sizes,
            kv_lora_rank=16,
            q_lora_rank=16,
            qk_rope_head_dim=8,
            n_routed_experts=8,
            n_group=1,
            topk_group=1,
            moe_intermediate_size=32,
            v_head_dim=16,
            qk_nope_head_dim=16,
        )
    ).eval()
    found = cache_size(deepseek, find_architecture(deepseek))
    assert found is not None
    assert found.elements_per_token * 7 == elements_kept(deepseek, 7)


def test_an_encoder_and_a_module_of_ones_own_keep_none() -> None:
    bert = tiny("bert")
    assert cache_size(bert, find_architecture(bert)) is None
    assert cache_size(nn.Linear(2, 2), find_architecture(bert)) is None


def test_nothing_of_the_model_changes() -> None:
    model = tiny("qwen2")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    pad = model.config.pad_token_id
    cache_size(model, find_architecture(model))
    assert model.config.pad_token_id == pad
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_widths_are_those_of_the_layers() -> None:
    found = widths(tiny("qwen2"))
    assert found is not None
    assert (found.hidden, found.widest, found.vocabulary) == (64, 96, 320)
    gpt2 = widths(tiny("gpt2"))
    assert gpt2 is not None
    assert gpt2.widest == 256
    assert widths(nn.ReLU()) is None


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "mixtral"])
def test_a_format_stores_the_matrices_of_layers(name: str) -> None:
    """Embeddings, norms, biases, routers and the head stay in the dtype."""
    model = tiny(name)
    stored = sum(
        weight.numel()
        for key, weight in model.named_parameters()
        if weight.dim() >= 2
        and not any(part in key for part in ("embed", "wte", "wpe", "shared", "lm_head", "gate.w"))
        and "relative_attention_bias" not in key
    )
    assert num_stored(model, find_architecture(model)) == stored


@pytest.mark.parametrize(
    ("name", "supported", "expected"),
    architectures(
        [
            ("qwen2", "sdpa", {"head_dim": 16, "num_key_value_heads": 2, "softcap": None}),
            ("gemma2", "flash_attention_2", {"softcap": 50.0, "sliding_window": 16}),
            ("t5", "sdpa", {"head_dim": 16, "is_causal": True}),
            ("bert", "sdpa", {"is_causal": False}),
            ("bloom", "eager", {"head_dim": 16}),
        ]
    ),
)
def test_attention_is_read_from_config_and_class(
    name: str, supported: str, expected: dict[str, object]
) -> None:
    model = tiny(name)
    found = attention_facts(model, find_architecture(model))
    assert found is not None
    assert supported in found.supported
    assert {key: getattr(found, key) for key in expected} == expected
    assert ("sdpa" in found.supported) == (name not in {"gemma2", "bloom"})
