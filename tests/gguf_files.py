"""Tiny models as GGUF files, written with the package that llama.cpp's own converter uses."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

from tests.tiny_models import BOS, EOS, PAD, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

Kind = gguf.GGMLQuantizationType
_ARCHITECTURES = {"gemma3_text": "gemma3", "qwen3_moe": "qwen3moe"}
"""llama.cpp's names where they are not transformers'."""


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
    for key, text in metadata.items():
        writer.add_string(key, text)
    for name, values in _tensors(model, architecture):
        kind = kind_of(name) if values.ndim > 1 else Kind.F32
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
    kind = model.config.model_type
    if stem.endswith("experts.gate_up_proj"):
        for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            layer = stem.split(".")[2]
            yield f"blk.{layer}.ffn_{part}_exps.weight", half.contiguous().numpy()
        return
    if stem.endswith("experts.down_proj"):
        yield f"blk.{stem.split('.')[2]}.ffn_down_exps.weight", tensor.numpy()
        return
    if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
        heads = model.config.num_attention_heads
        if stem.endswith("k_proj"):
            heads = model.config.num_key_value_heads
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    if kind in {"gemma2", "gemma3_text"} and stem.endswith("norm"):
        tensor = tensor + 1
    name = names.get_name(stem)
    assert name is not None, stem
    yield f"{name}{end}", tensor.contiguous().numpy()
