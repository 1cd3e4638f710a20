"""Tiny models as GGUF files, written with the package that llama.cpp's own converter uses."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import gguf
import transformers
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from tests.tiny_models import (
    BOS,
    EOS,
    HIDDEN_SIZE,
    INTERMEDIATE_SIZE,
    MAX_POSITIONS,
    NUM_HEADS,
    NUM_KV_HEADS,
    PAD,
    VOCAB_SIZE,
    tiny_config,
    tiny_of,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedConfig, PreTrainedModel

Kind = gguf.GGMLQuantizationType
_ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "gemma4_text": "gemma4",
    "gpt_oss": "gpt-oss",
    "minimax_m2": "minimax-m2",
    "mistral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "umt5": "t5",
}
"""llama.cpp's names where they are not transformers'."""


_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": INTERMEDIATE_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": NUM_HEADS,
    "num_key_value_heads": NUM_KV_HEADS,
    "max_position_embeddings": MAX_POSITIONS,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "falcon": (transformers.FalconConfig, {}),
    "gemma4": (
        transformers.Gemma4TextConfig,
        {"layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mamba": (transformers.MambaConfig, {"state_size": 8, "time_step_rank": 8}),
    "minimax_m2": (
        transformers.MiniMaxM2Config,
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": HIDDEN_SIZE // NUM_HEADS},
    ),
    "mistral": (transformers.MistralConfig, {}),
    "nemotron": (transformers.NemotronConfig, {}),
    "qwen2_moe": (transformers.Qwen2MoeConfig, {"num_experts": 4, "num_experts_per_tok": 2}),
    "stablelm": (transformers.StableLmConfig, {}),
    "starcoder2": (transformers.Starcoder2Config, {}),
}
"""Architectures more than ``tiny`` has; what else a config says is what transformers assumes."""


def model_of(name: str) -> PreTrainedModel:
    """A tiny model, in the sizes that a file of its architecture implies."""
    if name in _CONFIGS:
        config_class, settings = _CONFIGS[name]
        return tiny_of(config_class(**{**_SIZES, **settings}))
    if name == "umt5":
        return _umt5()
    config: Any = tiny_config(name, num_layers=2)
    if name.startswith("qwen3"):  # transformers reads neither from the file
        config.head_dim = 128
    if name == "qwen3_moe":
        config.moe_intermediate_size = 768
    return tiny_of(config)


def _umt5() -> PreTrainedModel:
    t5 = tiny_config("t5", num_layers=2).to_dict()
    settings = {name: value for name, value in t5.items() if name != "model_type"}
    return transformers.UMT5ForConditionalGeneration(transformers.UMT5Config(**settings)).eval()


def always(kind: Kind) -> Callable[[str], Kind]:
    """Every matrix in one type."""
    return lambda _: kind


def write_gguf(
    model: PreTrainedModel,
    file: Path,
    *,
    kind_of: Callable[[str], Kind] = lambda _: Kind.F32,
    tokenizer: bool = True,
    quantizers: Mapping[Kind, Callable[[NDArray[np.float32]], NDArray[np.uint8]]] | None = None,
    extra: Mapping[str, torch.Tensor] | None = None,
    **metadata: Any,
) -> Path:
    """The file: a model with its tokenizer, as llama.cpp's converter would write it.

    Args:
        model: one of ``tiny``'s.
        file: where to.
        kind_of: the type that a matrix is stored in, by llama.cpp's name; vectors are float32.
        tokenizer: with the tokens and merges of ``tiny_tokenizer``.
        quantizers: of types that ``gguf`` does not write.
        extra: tensors more, by llama.cpp's name.
        metadata: keys and texts more.
    """
    config = model.config
    architecture = _ARCHITECTURES.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(file, architecture)
    _add_settings(writer, config, architecture)
    if tokenizer:
        _add_tokenizer(writer)
    if config.model_type == "umt5":  # transformers tells it from T5 by its name
        writer.add_name("umt5")
    for key, text in metadata.items():
        writer.add_string(key, text)
    for name, values in _tensors(model, architecture):
        kind = kind_of(name) if values.ndim > 1 else Kind.F32
        if values.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:  # rows of whole blocks alone
            kind = Kind.F32
        if kind is Kind.F32:
            writer.add_tensor(name, values)
        else:
            own = (quantizers or {}).get(kind)
            blocks = gguf.quantize(values, kind) if own is None else own(values)
            writer.add_tensor(name, blocks, raw_dtype=kind)
    for name, tensor in (extra or {}).items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_settings(writer: gguf.GGUFWriter, config: Any, architecture: str) -> None:
    every: Any = GGUF_CONFIG_MAPPING
    for key, setting in every[config.model_type.removesuffix("_text")].items():
        value = _setting(config, setting)
        if isinstance(value, int):
            writer.add_uint32(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)


def _setting(config: Any, name: str | None) -> Any:
    if name == "rope_theta":
        parameters = config.rope_parameters or {}
        return parameters.get(name, parameters.get("full_attention", {}).get(name))
    return None if name is None else getattr(config, name, None)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if index >= PAD else 1 for index in range(len(tokens))])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(True)


def _tensors(
    model: PreTrainedModel, architecture: str
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Names and values as llama.cpp has them."""
    (arch,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        stem, dot, end = name.rpartition(".")
        if end not in {"weight", "bias"}:
            stem, dot, end = name, "", ""
        yield from _converted(model, names, stem, dot + end, tensor.float())


def _converted(
    model: PreTrainedModel, names: Any, stem: str, end: str, tensor: torch.Tensor
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    if stem.endswith("experts.gate_up_proj"):
        for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            layer = stem.split(".")[2]
            yield f"blk.{layer}.ffn_{part}_exps.weight", half.contiguous().numpy()
        return
    if stem.endswith("experts.down_proj"):
        yield f"blk.{stem.split('.')[2]}.ffn_down_exps.weight", tensor.numpy()
        return
    if stem.endswith("e_score_correction_bias"):
        yield f"blk.{stem.split('.')[2]}.exp_probs_b.bias", tensor.numpy()
        return
    # some are converted without their head
    name = names.get_name(stem) or names.get_name(stem.removeprefix(f"{model.base_model_prefix}."))
    assert name is not None, stem
    changed = _changed(model.config, f"{name.rpartition('.')[2]}{end}", tensor)
    yield f"{name}{end}", changed.contiguous().numpy()


def _changed(config: Any, part: str, tensor: torch.Tensor) -> torch.Tensor:
    """The values as llama.cpp's converter stores them, in its order and shape.

    Args:
        config: of the model.
        part: of a layer, in llama.cpp's words: ``attn_q.weight``.
        tensor: as transformers has it.
    """
    kind = config.model_type
    if kind in {"gemma2", "gemma3_text", "nemotron"} and part.endswith("norm.weight"):
        return tensor + 1
    change = _CHANGES.get((kind, part))
    return tensor if change is None else change(config, tensor)


def _heads_apart(config: Any, tensor: torch.Tensor) -> torch.Tensor:
    """All queries, all keys and all values, in place of those of each head."""
    return tensor.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)


def _turned(setting: str, config: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The halves of each head that RoPE rotates, element by element."""
    num_heads = getattr(config, setting)
    return tensor.unflatten(0, (num_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


_CHANGES: Mapping[tuple[str, str], Callable[[Any, torch.Tensor], torch.Tensor]] = {
    **{
        (kind, f"attn_{part}.weight"): partial(_turned, setting)
        for kind in ("llama", "mistral")
        for part, setting in (("q", "num_attention_heads"), ("k", "num_key_value_heads"))
    },
    **{
        ("gpt2", f"{part}.weight"): lambda _, tensor: tensor.mT
        for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")
    },
    ("bloom", "attn_qkv.weight"): _heads_apart,
    ("bloom", "attn_qkv.bias"): _heads_apart,
    ("qwen2_moe", "ffn_gate_inp_shexp.weight"): lambda _, tensor: tensor.squeeze(0),
    ("mamba", "ssm_conv1d.weight"): lambda _, tensor: tensor.squeeze(1),
    ("mamba", "ssm_a"): lambda _, tensor: -tensor.exp(),
}
"""By transformers' model type and llama.cpp's part of a layer."""
