"""The largest keys and values are those that transformers' own cache is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.pipeline import scan
from tests.measure.scans import passes, plain_inputs
from tests.tiny_models import save_checkpoint, tiny_config, tiny_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel

    from tests.measure.scans import Pass


class WatchingCache(transformers.DynamicCache):
    """Notes the largest key and value of each layer at real tokens."""

    def __init__(self, mask: Tensor | None, largest: dict[tuple[str, int], float]) -> None:
        super().__init__()
        self._mask, self._largest = mask, largest

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        for name, tensor in (("key", key_states), ("value", value_states)):
            by_token = tensor.transpose(1, 2)
            real = by_token if self._mask is None else by_token[self._mask.bool()]
            before = self._largest.get((name, layer_idx), 0.0)
            self._largest[name, layer_idx] = max(before, float(real.abs().max()))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def cached(model: PreTrainedModel, found: list[Pass]) -> dict[tuple[str, int], float]:
    """The largest key and value that a cache is given in plain forwards over a scan's batches."""
    largest: dict[tuple[str, int], float] = {}
    for each in found:
        if each.configuration[0] == "float32":
            cache = WatchingCache(each.batch.attention_mask, largest)
            with torch.no_grad():
                model(**plain_inputs(each.batch), past_key_values=cache, use_cache=True)
    return largest


def with_biases(config: PreTrainedConfig) -> PreTrainedModel:
    """A tiny model whose biases are large enough to matter."""
    model = tiny_of(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.mul_(20.0)
    return model


CONFIGS = {
    name: tiny_config(name, num_layers=2)
    for name in ("qwen2", "qwen3", "llama", "gemma3", "opt", "mixtral", "phi3", "gpt_neox", "gpt2")
}
COMMON = {
    key: value
    for key, value in CONFIGS["llama"].to_diff_dict().items()
    if key in {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"}
    or key in {"num_attention_heads", "num_key_value_heads", "max_position_embeddings"}
}
CONFIGS |= {
    "starcoder2": transformers.Starcoder2Config(**COMMON),
    "phi": transformers.PhiConfig(**COMMON),
    "olmo2": transformers.Olmo2Config(**COMMON),
    "stablelm": transformers.StableLmConfig(**COMMON, use_qkv_bias=True),
    "biased llama": transformers.LlamaConfig(**COMMON, attention_bias=True),
}
NOT_SEEN = {
    "phi3": {"value"},
    "gpt_neox": {"value"},
    "gpt2": {"key", "value"},
}
"""Views of a fused projection."""
ROTATED_IN_PART = {"gpt_neox", "phi", "stablelm"}
"""Only the rotated part of the key is known."""


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_cache_holds_is_known_without_one(
    name: str, attn_implementation: str, tmp_path: Path
) -> None:
    model = with_biases(CONFIGS[name])
    save_checkpoint(model, tmp_path, tokenizer=True)
    with passes() as found:
        report = scan(
            tmp_path, dtypes=["float16"], attn_implementations=[attn_implementation], quick=True
        )
    expected = cached(model, found)
    rows = {row.layer: row for row in report.key_values}
    if name == "gpt2":
        assert not rows
        return
    assert set(rows) == {0, 1}
    for (what, layer), largest in expected.items():
        seen = getattr(rows[layer], what)
        if what in NOT_SEEN.get(name, ()):
            assert seen is None
        elif what == "key" and name in ROTATED_IN_PART:
            assert 0.2 * largest < seen <= largest * (1 + 1e-5)
        else:
            assert seen == pytest.approx(largest, rel=1e-5)


def test_cross_attention_has_rows_of_its_own(tmp_path: Path) -> None:
    model = tiny_of(tiny_config("t5", num_layers=2))
    save_checkpoint(model, tmp_path, tokenizer=True)
    with passes() as found:
        report = scan(tmp_path, dtypes=["float16"], attn_implementations=["eager"], quick=True)
    largest: dict[str, float] = {}

    def keep(name: str) -> Any:
        def hook(_module: object, _args: object, output: Tensor) -> None:
            largest[name] = max(largest.get(name, 0.0), float(output.abs().max()))

        return hook

    for name, module in model.named_modules():
        if name.endswith(("Attention.k", "Attention.v")):
            module.register_forward_hook(keep(name))
    for each in found:
        if each.configuration[0] == "float32":
            assert each.batch.attention_mask is None
            with torch.no_grad():
                model(**plain_inputs(each.batch), use_cache=False)
    assert {row.module for row in report.key_values} == {name[:-2] for name in largest}
    assert len(report.key_values) == 2 + 2 * 2
    for row in report.key_values:
        assert row.key == pytest.approx(largest[f"{row.module}.k"], rel=1e-5)
        assert row.value == pytest.approx(largest[f"{row.module}.v"], rel=1e-5)
