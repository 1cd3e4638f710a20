"""Checkpoints with Python code of their own: a small decoder, written in odd ways."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

NUM_LAYERS = 4
HIDDEN = 32
_CODE = """
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class MineConfig(PreTrainedConfig):
    model_type = "mine"

    def __init__(self, vocab_size=128, hidden_size=32, num_hidden_layers=4, **kwargs):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = 4
        super().__init__(**kwargs)


@dataclass
class BlockOutput:
    hidden_states: torch.Tensor
    extra: torch.Tensor | None = None


class Mixer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.reads = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states):
        length = hidden_states.shape[1]
        past = torch.ones(length, length, dtype=hidden_states.dtype, device=hidden_states.device)
        return (past.tril() / length) @ self.reads(hidden_states)


class Feed(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, 2 * config.hidden_size, bias=False)
        self.down = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states):
        return self.down(torch.tanh(self.up(hidden_states)))


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mixer = Mixer(config)
        self.feed = Feed(config)
        {block_init}

    def forward(self, hidden_states):
        {block_before}
        hidden_states = hidden_states + self.mixer(self.norm(hidden_states))
        hidden_states = hidden_states + self.feed(self.norm(hidden_states))
        {block_returns}


class MinePreTrainedModel(PreTrainedModel):
    config_class = MineConfig
    base_model_prefix = "body"

    def _init_weights(self, module):
        pass


class MineModel(MinePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        {model_init}
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        hidden_states = self.embed(input_ids)
        {model_before}
        for block in self.blocks:
            {call}
        return self.norm(hidden_states)


class MineForCausalLM(MinePreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.body = MineModel(config)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids, attention_mask=None):
        logits = {logits}
        {returns}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Custom:
    """What differs from the plain decoder: lines of code, by where they stand."""

    block_init: str = "pass"
    block_before: str = "pass"
    block_returns: str = "return hidden_states"
    model_init: str = "pass"
    model_before: str = "pass"
    call: str = "hidden_states = block(hidden_states)"
    logits: str = "self.head(self.body(input_ids, attention_mask))"
    returns: str = "return CausalLMOutputWithPast(logits=logits)"
    shared: tuple[str, ...] = ()
    """Parts of the names of weights that are others': the checkpoint has only those."""
    block: str = "body.blocks.{}"
    """What the checkpoint calls a layer."""
    planted_layer: int = 1

    @property
    def code(self) -> str:
        """The modeling file."""
        text = _CODE
        for name in (
            *("block_init", "block_before", "block_returns", "model_init", "model_before"),
            *("call", "logits", "returns"),
        ):
            text = text.replace(f"{{{name}}}", getattr(self, name))
        return text


CUSTOM: dict[str, Custom] = {
    "plain": Custom(),
    "a block returns a tuple": Custom(
        block_returns="return hidden_states, None",
        call="hidden_states, _ = block(hidden_states)",
    ),
    "a block returns a list": Custom(
        block_returns="return [hidden_states]",
        call="hidden_states = block(hidden_states)[0]",
    ),
    "a block returns a dict": Custom(
        block_returns='return {"hidden_states": hidden_states, "extra": None}',
        call='hidden_states = block(hidden_states)["hidden_states"]',
    ),
    "a block returns a dataclass": Custom(
        block_returns="return BlockOutput(hidden_states=hidden_states)",
        call="hidden_states = block(hidden_states).hidden_states",
    ),
    "a block is called by keyword": Custom(
        call="hidden_states = block(hidden_states=hidden_states)"
    ),
    "a block writes into its input": Custom(
        block_before="given = hidden_states",
        block_returns="given.copy_(hidden_states)",
        call="hidden_states = hidden_states.clone(); block(hidden_states)",
    ),
    "an input is changed in place": Custom(block_before="hidden_states.mul_(1.0)"),
    "blocks are compiled": Custom(
        model_init=(
            "self.blocks = nn.ModuleList(torch.compile(b, backend='eager') for b in self.blocks)"
        ),
        block="body.blocks.{}._orig_mod",
    ),
    "forwards of blocks are compiled": Custom(
        model_init="[b.compile(backend='eager') for b in self.blocks]"
    ),
    "blocks are checkpointed": Custom(
        call="hidden_states = checkpoint(block, hidden_states, use_reentrant=False)"
    ),
    "blocks are checkpointed, reentrant": Custom(
        call="hidden_states = checkpoint(block, hidden_states, use_reentrant=True)"
    ),
    "all layers are one module": Custom(
        model_init="self.blocks = nn.ModuleList([self.blocks[0]] * config.num_hidden_layers)",
        shared=tuple(f"blocks.{i}." for i in range(1, NUM_LAYERS)),
        planted_layer=0,
    ),
    "one feed-forward serves all layers": Custom(
        model_init="[setattr(b, 'feed', self.blocks[0].feed) for b in self.blocks]",
        shared=tuple(f"blocks.{i}.feed" for i in range(1, NUM_LAYERS)),
        planted_layer=0,
    ),
    "tensors of its own": Custom(
        block_init="self.register_buffer('offset', torch.tensor(0.5), persistent=False)",
        block_before=(
            "hidden_states = hidden_states * torch.tensor([1.0], dtype=hidden_states.dtype,"
            " device=hidden_states.device) + 0 * torch.arange(hidden_states.shape[-1],"
            " device=hidden_states.device)"
        ),
    ),
    "the flow depends on values": Custom(
        block_before=(
            "hidden_states = hidden_states * 1.0"
            " if float(hidden_states.abs().max()) > 0 else hidden_states"
        ),
    ),
    "the model uses a weight without calling its module": Custom(
        logits=(
            "nn.functional.linear(self.body(input_ids, attention_mask),"
            " self.body.embed.weight) + 0 * self.head.weight[:, 0]"
        )
    ),
    "the answer is a tensor": Custom(returns="return logits"),
    "the answer is a tuple": Custom(returns="return (logits,)"),
    "the answer is a dict": Custom(returns='return {"logits": logits}'),
}


def save_custom(custom: Custom, folder: Path, *, planted: bool) -> Path:
    """The folder, now a checkpoint with ``modeling_mine.py`` in it.

    Args:
        custom: how the code is written.
        folder: made if it is not there.
        planted: whether the last product of a layer overflows float16.
    """
    folder.mkdir(exist_ok=True)
    (folder / "modeling_mine.py").write_text(custom.code, encoding="utf-8")
    config = {
        "model_type": "mine",
        "architectures": ["MineForCausalLM"],
        "auto_map": {
            "AutoConfig": "modeling_mine.MineConfig",
            "AutoModelForCausalLM": "modeling_mine.MineForCausalLM",
        },
        "vocab_size": VOCAB_SIZE,
        "hidden_size": HIDDEN,
        "num_hidden_layers": NUM_LAYERS,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tiny_tokenizer().save_pretrained(folder)
    save_file(_weights(custom, planted=planted), folder / "model.safetensors", {"format": "pt"})
    return folder


def _weights(custom: Custom, *, planted: bool) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=random) * 0.3

    weights = {
        "body.embed.weight": drawn(VOCAB_SIZE, HIDDEN),
        "head.weight": drawn(VOCAB_SIZE, HIDDEN),
        "body.norm.weight": torch.ones(HIDDEN),
        "body.norm.bias": torch.zeros(HIDDEN),
    }
    for index in range(NUM_LAYERS):
        block = custom.block.format(index)
        weights |= {
            f"{block}.norm.weight": torch.ones(HIDDEN),
            f"{block}.norm.bias": torch.zeros(HIDDEN),
            f"{block}.mixer.reads.weight": drawn(HIDDEN, HIDDEN),
            f"{block}.feed.up.weight": drawn(2 * HIDDEN, HIDDEN),
            f"{block}.feed.down.weight": drawn(HIDDEN, 2 * HIDDEN),
        }
    if planted:
        weights[f"{custom.block.format(custom.planted_layer)}.feed.down.weight"] *= 40_000
    return {
        name: weight
        for name, weight in weights.items()
        if not any(each in name for each in custom.shared)
    }
