"""Seeded models of real architectures, small enough to run in milliseconds, and ordinary numbers.

Every weight is drawn so that healthy models stay far inside the range of every dtype: a matrix
keeps the size of what goes through it, a norm's weight is about one, logits differ by a few nats.
Routers of the mixtures of experts read two channels that no layer writes to, so that rounding
never changes an expert.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import tokenizers
import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from precheck.checkpoint.gallery.vocabularies import packaged_text
from tests.pinned import marks

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from pathlib import Path

    from _pytest.mark import ParameterSet

VOCAB_SIZE = 320
"""256 bytes, three special tokens, and a few merges."""
PAD, BOS, EOS = VOCAB_SIZE - 3, VOCAB_SIZE - 2, VOCAB_SIZE - 1
HIDDEN_SIZE = 64
NUM_HEADS = 4
NUM_KV_HEADS = 2
INTERMEDIATE_SIZE = 96
MAX_POSITIONS = 1024

_SPECIAL: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}


def _llama_like(config_class: Callable[..., PreTrainedConfig], num_layers: int) -> PreTrainedConfig:
    """The settings that most decoder-only configurations have in common."""
    return config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_KV_HEADS,
        head_dim=HIDDEN_SIZE // NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        **_SPECIAL,
    )


def _qwen2(num_layers: int) -> PreTrainedConfig:
    config = _llama_like(transformers.Qwen2Config, num_layers)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e6}
    return config


def _alternating(config: PreTrainedConfig, num_layers: int) -> PreTrainedConfig:
    """Gemma's alternation of local and global attention, local to 16 tokens."""
    kinds = ("sliding_attention", "full_attention")
    config.layer_types = [kinds[index % 2] for index in range(num_layers)]
    config.sliding_window = 16
    config.query_pre_attn_scalar = HIDDEN_SIZE // NUM_HEADS
    return config


def _mixtral(num_layers: int) -> PreTrainedConfig:
    config = _llama_like(transformers.MixtralConfig, num_layers)
    config.num_local_experts, config.num_experts_per_tok = 4, 2
    return config


def _qwen3_moe(num_layers: int) -> PreTrainedConfig:
    config = _llama_like(transformers.Qwen3MoeConfig, num_layers)
    config.num_experts, config.num_experts_per_tok = 4, 2
    config.moe_intermediate_size = INTERMEDIATE_SIZE
    config.norm_topk_prob = True
    return config


def _gpt2(num_layers: int) -> PreTrainedConfig:
    return transformers.GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_embd=HIDDEN_SIZE,
        n_layer=num_layers,
        n_head=NUM_HEADS,
        n_positions=MAX_POSITIONS,
        **_SPECIAL,
    )


def _opt(num_layers: int) -> PreTrainedConfig:
    return transformers.OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        word_embed_proj_dim=HIDDEN_SIZE,
        ffn_dim=INTERMEDIATE_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        **_SPECIAL,
    )


def _gpt_neox(num_layers: int) -> PreTrainedConfig:
    return transformers.GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        **_SPECIAL,
    )


def _bloom(num_layers: int) -> PreTrainedConfig:
    return transformers.BloomConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        n_layer=num_layers,
        n_head=NUM_HEADS,
        **_SPECIAL,
    )


def _t5(num_layers: int) -> PreTrainedConfig:
    config = transformers.T5Config(
        vocab_size=VOCAB_SIZE,
        d_model=HIDDEN_SIZE,
        d_kv=HIDDEN_SIZE // NUM_HEADS,
        d_ff=INTERMEDIATE_SIZE,
        num_layers=num_layers,
        num_heads=NUM_HEADS,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD,
        eos_token_id=EOS,
    )
    config.decoder_start_token_id = PAD
    return config


def _bert(num_layers: int) -> PreTrainedConfig:
    return transformers.BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=INTERMEDIATE_SIZE,
        num_hidden_layers=num_layers,
        num_attention_heads=NUM_HEADS,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=PAD,
    )


_CONFIGS: Mapping[str, Callable[[int], PreTrainedConfig]] = {
    "qwen2": _qwen2,
    "qwen3": lambda num_layers: _llama_like(transformers.Qwen3Config, num_layers),
    "llama": lambda num_layers: _llama_like(transformers.LlamaConfig, num_layers),
    "gemma2": lambda num_layers: _alternating(
        _llama_like(transformers.Gemma2Config, num_layers), num_layers
    ),
    "gemma3": lambda num_layers: _alternating(
        _llama_like(transformers.Gemma3TextConfig, num_layers), num_layers
    ),
    "gpt2": _gpt2,
    "opt": _opt,
    "mixtral": _mixtral,
    "qwen3_moe": _qwen3_moe,
    "phi3": lambda num_layers: _llama_like(transformers.Phi3Config, num_layers),
    "gpt_neox": _gpt_neox,
    "bloom": _bloom,
    "t5": _t5,
    "bert": _bert,
}

TINY: tuple[str, ...] = tuple(_CONFIGS)
"""Names of the architectures, as transformers spells its model types."""

EAGER_ONLY: tuple[str, ...] = ("gemma2", "bloom")
"""Those whose class has no sdpa attention."""

PINNED: Mapping[str, str] = {
    "gemma2": "the tested transformers has no sdpa for Gemma 2",
    "t5": "the tested transformers has sdpa for T5",
}
"""Those of which other libraries have another set of attention implementations."""


def architectures(
    cases: Iterable[str | tuple[Any, ...]], *, unpinned: Collection[str] = ()
) -> list[ParameterSet]:
    """Cases for ``parametrize``, each a name or what begins with one, those of ``PINNED`` marked.

    ``unpinned`` are names of which the test holds with any libraries.
    """
    reasons = {name: reason for name, reason in PINNED.items() if name not in unpinned}
    rows = [(case,) if isinstance(case, str) else case for case in cases]
    return [pytest.param(*row, marks=marks(row[0], reasons)) for row in rows]


def attn_implementations(name: str) -> tuple[str, ...]:
    """The attention implementations that the architecture has on a CPU."""
    return ("eager",) if name in EAGER_ONLY else ("eager", "sdpa")


def tiny(name: str, *, num_layers: int = 3, seed: int = 0) -> PreTrainedModel:
    """A healthy float32 model of the architecture, in eval mode.

    The same name, depth and seed give the same weights; the global random state is left alone.
    """
    return tiny_of(_CONFIGS[name](num_layers), seed=seed)


def tiny_config(name: str, *, num_layers: int = 3) -> PreTrainedConfig:
    """The config of the architecture's tiny model."""
    return _CONFIGS[name](num_layers)


def tiny_of(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A healthy float32 model of any config, in eval mode."""
    with torch.random.fork_rng():
        model = _with_head(config.model_type, config)
    _fill(model, seed)
    return model.eval()


def tiny_inputs(
    name: str, *, batch: int = 3, length: int = 12, left_padded: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random ordinary token ids ``(batch, length)`` and what else ``forward`` needs.

    Row ``i`` of a left-padded batch starts with ``3 * i`` pad tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(0, PAD, (batch, length), generator=generator)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if left_padded:
        for row in range(batch):
            inputs["input_ids"][row, : 3 * row] = PAD
            inputs["attention_mask"][row, : 3 * row] = 0
    if name == "t5":
        inputs["decoder_input_ids"] = torch.randint(0, PAD, (batch, length), generator=generator)
    return inputs


def save_checkpoint(model: PreTrainedModel, folder: Path, *, tokenizer: bool) -> Path:
    """The folder, now holding config, safetensors and, if asked, a byte-level BPE tokenizer."""
    model.save_pretrained(folder)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of ``VOCAB_SIZE`` tokens, trained on the packaged text; id 0 is ``!``.

    It prepends BOS, pads on the left, and has a chat template.
    """
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|pad|>", "<|bos|>", "<|endoftext|>"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(special),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([packaged_text()], trainer)
    bpe.add_special_tokens(special)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", BOS)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|endoftext|>",
        padding_side="left",
        model_max_length=MAX_POSITIONS,
    )
    fast.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    return fast


def _with_head(name: str, config: PreTrainedConfig) -> PreTrainedModel:
    """The model with its language-modelling head."""
    match name:
        case "t5":
            return transformers.AutoModelForSeq2SeqLM.from_config(config)
        case "bert":
            return transformers.AutoModelForMaskedLM.from_config(config)
        case _:
            return transformers.AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def _fill(model: PreTrainedModel, seed: int) -> None:
    """Draws every parameter; norms and biases around what transformers starts them with."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.add_(0.1 * drawn)
        else:
            parameter.copy_(drawn * _std(model, name, parameter))
    _separate_routes(model)


def _std(model: PreTrainedModel, name: str, parameter: torch.Tensor) -> float:
    """The standard deviation that keeps what goes through the module at its size."""
    owner = model.get_submodule(name.rpartition(".")[0])
    is_t5 = model.config.model_type == "t5"
    if isinstance(owner, torch.nn.Embedding):
        # T5 divides the last hidden states by sqrt(hidden) before its logits.
        return 2.0 if is_t5 else 0.4
    fan_in = parameter.shape[0 if type(owner).__name__ == "Conv1D" else -1]
    if owner is model.get_output_embeddings():
        return 3 / math.sqrt(fan_in)
    if is_t5 and name.endswith("Attention.q.weight"):
        # T5 does not scale q k^T: its own initialisation gives q that factor.
        return 1 / math.sqrt(fan_in * model.config.d_kv)
    return 1 / math.sqrt(fan_in)


_EXPERT_DIRECTIONS = torch.tensor([[2.0, 1.0], [-2.0, -1.0], [1.0, -2.0], [-1.0, 2.0]])
"""Against any of the four signs of two channels, the four scores are 3, 1, -1, -3 in some order."""


def _separate_routes(model: PreTrainedModel) -> None:
    """Lets every router read the signs of channels 0 and 1, which only the embedding writes."""
    parameters = dict(model.named_parameters())
    routers = [name for name in parameters if name.endswith("mlp.gate.weight")]
    if not routers:
        return
    embedding = parameters["model.embed_tokens.weight"]
    embedding[:, :2] = torch.where(embedding[:, :2] < 0, -1.0, 1.0)
    for name, parameter in parameters.items():
        if name.endswith(("o_proj.weight", "experts.down_proj")):
            parameter[..., :2, :] = 0
    for index, name in enumerate(routers):
        parameters[name].zero_()
        parameters[name][:, :2] = 2 * _EXPERT_DIRECTIONS.roll(index, dims=0)
