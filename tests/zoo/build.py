"""Tiny random models of every architecture that transformers can build small, from its own configs.

No list of architectures: the classes are those of transformers' auto classes, and each size that a
config has is made small. Where the first try does not build, a few others are tried; what does not
build then is left out, with its reason.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from tests.tiny_models import VOCAB_SIZE

TASKS = {
    "causal": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image-text": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
}
HIDDEN = 64
_SIZES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "vocab_size",
            "vocab_size_per_layer_input",
            "src_vocab_size",
            "tgt_vocab_size",
            "text_vocab_size",
            "decoder_vocab_size",
        ),
        VOCAB_SIZE,
    ),
    **dict.fromkeys(
        (
            "hidden_size",
            "n_embd",
            "d_model",
            "dim",
            "model_dim",
            "embed_dim",
            "embedding_size",
            "hidden_dim",
            "emb_dim",
            "word_embed_proj_dim",
            "embedding_dim",
            "projection_dim",
            "out_hidden_size",
            "lru_width",
            "d_embed",
        ),
        HIDDEN,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "n_inner",
            "d_ff",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "dense_intermediate_size",
            "intermediate_size_mlp",
            "mlp_dim",
        ),
        2 * HIDDEN,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
            "depth",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads"), 2),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "attention_head_size",
            "qk_rope_head_dim",
            "qk_nope_head_dim",
            "v_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "kv_lora_rank",
        ),
        16,
    ),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_sequence_length"),
        512,
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(
        ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "top_k", "moe_top_k"),
        2,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "expert_ffn_hidden_size",
            "moe_shared_expert_intermediate_size",
            "q_lora_rank",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "n_shared_experts",
            "num_shared_experts",
            "n_group",
            "topk_group",
            "num_expert_group",
            "moe_num_shared_experts",
        ),
        1,
    ),
    **dict.fromkeys(
        ("state_size", "ssm_state_size", "mamba_d_state", "time_step_rank", "mamba_dt_rank"), 8
    ),
    "mamba_d_head": 16,
    "mamba_n_heads": 8,
    "mamba_d_ssm": 128,
    "mamba_num_heads": 8,
    "mamba_head_dim": 16,
    "n_groups": 1,
    "mamba_n_groups": 1,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "sliding_window": 64,
    "attention_window_size": 64,
    "window_size": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "rotary_dim": 8,
    "hidden_size_per_layer_input": 16,
    "num_kv_shared_layers": 1,
    "first_k_dense_replace": 1,
    # as a trained model's: with the usual 0.02, what 64 elements give is lost in the rounding
    **dict.fromkeys(("initializer_range", "init_std"), 0.1),
    "layer_types": None,
    "num_nextn_predict_layers": 0,
}
_KEPT = object()
"""Leaves a setting as the config class has it."""
_CYCLED = object()
"""The kinds of layers that the config class has, in turn."""
_VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"num_key_value_heads": 4},
    {"num_hidden_layers": 8, "n_layer": 8, "num_layers": 8},
    {"num_hidden_layers": 6, "n_layer": 6, "num_layers": 6},
    {"head_dim": 32},
    {"hidden_size_per_layer_input": 0},
    {"num_experts_per_tok": 1},
    {"layer_types": ["full_attention"] * 4},
    {"is_decoder": True},
    {"hidden_size": 128, "head_dim": 32, "intermediate_size": 256},
    {"layer_types": _CYCLED},
    {"layer_types": _KEPT},
    dict.fromkeys(("layer_types", "num_hidden_layers", "num_layers", "n_layer"), _KEPT),
    # rotations whose parts add up to half a head of 128
    {"hidden_size": 512, "head_dim": 128, "intermediate_size": 256},
    {"hidden_size": 256, "head_dim": 64, "intermediate_size": 256},
    {"attention_types": [[["global", "local"], 2]]},
    {"max_position_embeddings": 4096, "axial_pos_embds": False, "is_decoder": True},
)
_ABSENT_BY_CHOICE = frozenset(
    {"layer_types", "q_lora_rank", "sliding_window", "n_inner", "num_kv_shared_layers"}
)
"""What a config leaves out on purpose."""
_LARGEST = 30e6
"""Parameters."""


class Kind(NamedTuple):
    """A model class, and the auto class it was found in."""

    task: str
    model_type: str
    class_name: str


class NotBuiltError(Exception):
    """No small model of this class was made; the reason is that of the first try."""


def kinds() -> list[Kind]:
    """Every class of the auto classes, once."""
    return [kind for name, kind in _named().items() if hasattr(transformers, name)]


def kind_of(class_name: str) -> Kind:
    """The one with that name; no other is imported."""
    return _named()[class_name]


def _named() -> dict[str, Kind]:
    """What the auto classes list by the names of classes, some of which cannot be imported."""
    found: dict[str, Kind] = {}
    for task, mapping in TASKS.items():
        for model_type, names in getattr(modeling_auto, mapping).items():
            name = names[0] if isinstance(names, tuple | list) else names
            found.setdefault(name, Kind(task, model_type, name))
    return found


def build(kind: Kind) -> PreTrainedModel:
    """A model of this class that runs on token ids.

    Raises:
        NotBuiltError: none of the tries does.
    """
    model_class: Any = getattr(transformers, kind.class_name)
    reasons: list[str] = []
    for extra in _VARIANTS:
        try:
            return _built(model_class, extra)
        except Exception as error:  # noqa: BLE001  what a config refuses is anything
            lines = str(error).strip().splitlines()
            reasons.append(f"{type(error).__name__}: {lines[0] if lines else ''}")
    raise NotBuiltError(reasons[0])


def _built(model_class: Any, extra: dict[str, Any]) -> PreTrainedModel:
    config = model_class.config_class(**small(model_class.config_class, extra))
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > _LARGEST:
        raise NotBuiltError(f"{size / 1e6:.0f} M parameters at the least")
    torch.manual_seed(0)
    model: PreTrainedModel = _initialised(model_class, config).eval()
    output = forward(model).logits
    if not bool(output.isfinite().all()):
        raise NotBuiltError("its output is not finite")
    return model


def _initialised(model_class: Any, config: Any) -> PreTrainedModel:
    """The model with every parameter drawn: some classes leave some to the checkpoint.

    torch fills memory that nobody writes to with NaN where it has to be deterministic.
    """
    torch.use_deterministic_algorithms(True)
    try:
        model: PreTrainedModel = model_class(config)
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                tensor.normal_(std=0.1)
    return model


def small(config_class: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a config class: every size that it has, small."""
    config = config_class()
    wanted = {
        name: value
        for name, value in {**_SIZES, **extra}.items()
        if value is not _KEPT and _takes(config_class, config, name)
    }
    if wanted.get("layer_types") is _CYCLED:
        kinds_of_layers = list(dict.fromkeys(config.layer_types or ()))
        num_layers = wanted.get("num_hidden_layers", 4)
        wanted["layer_types"] = [
            kinds_of_layers[index % len(kinds_of_layers)] for index in range(num_layers)
        ]
    for name, part in vars(config).items():
        if isinstance(part, PreTrainedConfig):
            wanted[name] = small(type(part), extra)
    return wanted


def _takes(config_class: Any, config: Any, name: str) -> bool:
    """Whether a config has a size that can be set."""
    meant = config_class.attribute_map.get(name, name)
    described = inspect.getattr_static(config_class, meant, None)
    if isinstance(described, property) and described.fset is None:
        return False
    try:
        known = getattr(config, name)
    except Exception:  # noqa: BLE001  some configs raise errors of their own
        return False
    if isinstance(known, bool) or (
        isinstance(known, list | tuple) and name not in {"layer_types", "attention_types"}
    ):
        return False
    return known is not None or name not in _ABSENT_BY_CHOICE


def forward(model: Any, *, length: int = 12, padding: int = 0) -> Any:
    """The model's answer to a few token ids, those of the second row behind some padding."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE - 3, (2, length), generator=random)
    accepts = inspect.signature(model.forward).parameters
    inputs: dict[str, Any] = {"input_ids": ids}
    if "decoder_input_ids" in accepts:
        inputs["decoder_input_ids"] = ids[:, :6]
    if "use_cache" in accepts:
        inputs["use_cache"] = False
    if padding:
        inputs["attention_mask"] = torch.ones_like(ids)
        inputs["attention_mask"][1, :padding] = 0
    with torch.no_grad():
        return model(**inputs)
