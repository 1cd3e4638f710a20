"""Models that break on inputs which few probes hold: a token, a pair, repetition, a length, a size.

Every plant is drawn by a seed: the tokens, the layer, the lane and how long it takes. Nothing in
the embedding tells the token: a value head reads the direction in which its embedding points, which
others point along by chance, up to 0.4 times as far. All other lanes of the planted operation reach
a sixteenth of float16's limit for random text. How large the planted product becomes is measured
and then set.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
import transformers

from tests.hunt.image_plants import save_with_tower
from tests.hunt.words import BOS, EOS, PAD, save_tokenizer, whole_words

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedModel

LIMIT = 65_504.0
HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS = 128, 192, 4, 2, 3
HEAD_DIM = HIDDEN // HEADS
CONTEXT = 3072
LONGEST_PROBE = 2048
"""Tokens of the longest text that a scan runs on its own."""
PRIVATE = HIDDEN - 1
"""A channel that only the plant writes and reads."""
NOISE = LIMIT / 16


class Kind(StrEnum):
    """What it takes to break the model."""

    FIRST = "first token"
    PAIR = "pair of tokens"
    REPEATED = "repeated token"
    LENGTH = "length"
    IMAGE = "image size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A model to build."""

    kind: Kind
    architecture: str
    """transformers' name of its config, without ``Config``."""
    seed: int
    vocab_size: int = 32_000

    @property
    def adds_bos(self) -> bool:
        """Repetition counts only behind something else: the first token attends to itself."""
        return self.kind is Kind.REPEATED


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """A model that was built."""

    module: str
    """The layer with the fault."""
    trigger: tuple[int, ...]
    """Token ids that break it; for an image, the rows and columns between two of its patches."""


def build(plant: Plant, folder: Path) -> Planted:
    """Saves the model as a float32 checkpoint with a tokenizer."""
    generator = torch.Generator().manual_seed(plant.seed)
    if plant.kind is Kind.IMAGE:
        module, far = save_with_tower(
            plant.architecture, folder, vocab_size=plant.vocab_size, generator=generator
        )
        return Planted(module=module, trigger=far)
    model = _healthy(plant, generator)
    with torch.no_grad():
        planted = _PLANTS[plant.kind](plant, model, generator)
    model.save_pretrained(folder)
    save_tokenizer(folder, size=plant.vocab_size, adds_bos=plant.adds_bos)
    return planted


def _config(plant: Plant) -> Any:
    architecture, size = plant.architecture, plant.vocab_size
    make = getattr(transformers, f"{architecture}Config")
    special = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    if architecture == "GPT2":
        return make(
            vocab_size=size,
            n_embd=HIDDEN,
            n_layer=LAYERS,
            n_head=HEADS,
            n_positions=CONTEXT,
            n_inner=INTERMEDIATE,
            **special,
        )
    if architecture == "OPT":
        return make(
            vocab_size=size,
            hidden_size=HIDDEN,
            word_embed_proj_dim=HIDDEN,
            ffn_dim=INTERMEDIATE,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=CONTEXT,
            **special,
        )
    return make(
        vocab_size=size, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM, max_position_embeddings=CONTEXT, **special,
    )  # fmt: skip


def _healthy(plant: Plant, generator: torch.Generator) -> PreTrainedModel:
    config = _config(plant)
    config.dtype = torch.float32
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06)
        embedding = model.get_input_embeddings().weight
        embedding.copy_(torch.randn(embedding.shape, generator=generator))
    return model


def _layers(model: PreTrainedModel) -> Any:
    base = model.base_model
    return base.h if hasattr(base, "h") else getattr(base, "decoder", base).layers


def _private_channel(model: PreTrainedModel) -> None:
    """Takes a channel away from everything in the model."""
    model.get_input_embeddings().weight[:, PRIVATE] = 0.0
    for layer in _layers(model):
        attention, mlp = layer.self_attn, layer.mlp
        for reads in (attention.q_proj, attention.k_proj, attention.v_proj):
            reads.weight[:, PRIVATE] = 0.0
        mlp.gate_proj.weight[:, PRIVATE] = mlp.up_proj.weight[:, PRIVATE] = 0.0
        attention.o_proj.weight[PRIVATE] = mlp.down_proj.weight[PRIVATE] = 0.0


def _carried(model: PreTrainedModel, layer: Any, token: int) -> None:
    """Attention of a layer writes into the private channel how much of a token it sees."""
    direction = _direction(model, token)
    attention = layer.self_attn
    attention.v_proj.weight[0] = direction
    attention.o_proj.weight[PRIVATE] = 0.0
    shared = HEADS // KV_HEADS
    attention.o_proj.weight[PRIVATE, [head * HEAD_DIM for head in range(shared)]] = 0.5


def _direction(model: PreTrainedModel, token: int) -> Tensor:
    weight: Any = model.get_input_embeddings().weight
    embedding: Tensor = weight[token].clone()
    embedding[PRIVATE] = 0.0
    return embedding / embedding.norm()


def _product(
    plant: Plant,
    model: PreTrainedModel,
    generator: torch.Generator,
    *,
    tokens: tuple[int, ...],
    trigger: tuple[int, ...],
    times: float,
) -> Planted:
    """A lane of the gated product that the trigger makes ``times`` the limit.

    The gate reads what attention carried of the first token; the other factor reads the same, or
    where there are two tokens, the second itself.
    """
    number = 1 + _draw(generator, LAYERS - 1)
    lane = _draw(generator, INTERMEDIATE)
    layer = _layers(model)[number]
    _private_channel(model)
    _carried(model, layer, tokens[0])
    mlp = layer.mlp
    for factor in (mlp.gate_proj, mlp.up_proj):
        factor.weight[lane] = 0.0
        factor.weight[lane, PRIVATE] = 4.0
    if len(tokens) > 1:
        mlp.up_proj.weight[lane] = _direction(model, tokens[1])
    mlp.down_proj.weight[:, lane] = 0.0
    random = torch.randint(3, plant.vocab_size, (16, 24), generator=generator)
    others = [index for index in range(INTERMEDIATE) if index != lane]
    before = float(_inputs(model, mlp.down_proj, random)[:, others].max())
    mlp.up_proj.weight[others] *= NOISE / before
    mlp.down_proj.weight *= before / NOISE
    reached = float(_inputs(model, mlp.down_proj, torch.tensor([trigger]))[:, lane].max())
    mlp.up_proj.weight[lane] *= times * LIMIT / reached
    mlp.down_proj.weight[3, lane] = 1e-5
    return Planted(module=f"model.layers.{number}.mlp", trigger=trigger)


def _inputs(model: PreTrainedModel, module: Any, rows: Tensor) -> Tensor:
    """Magnitudes of what a module reads, ``(rows * seq, lanes)``."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0].abs()))
    model(input_ids=rows)
    handle.remove()
    return found[0].flatten(0, -2)


def _draw(generator: torch.Generator, most: int) -> int:
    return int(torch.randint(most, (1,), generator=generator))


def _words(plant: Plant, generator: torch.Generator, number: int) -> tuple[int, ...]:
    words = whole_words(plant.vocab_size)
    return tuple(words[_draw(generator, len(words))] for _ in range(number))


def _first(plant: Plant, model: PreTrainedModel, generator: torch.Generator) -> Planted:
    token, other = _words(plant, generator, 2)
    return _product(plant, model, generator, tokens=(token,), trigger=(token, other), times=1.5)


def _pair(plant: Plant, model: PreTrainedModel, generator: torch.Generator) -> Planted:
    tokens = _words(plant, generator, 2)
    return _product(plant, model, generator, tokens=tokens, trigger=tokens, times=1.5)


def _repeated(plant: Plant, model: PreTrainedModel, generator: torch.Generator) -> Planted:
    (token,) = _words(plant, generator, 1)
    times = 12 + _draw(generator, 36)
    trigger = (BOS, *[token] * times)
    return _product(plant, model, generator, tokens=(token,), trigger=trigger, times=1.02)


def _length(plant: Plant, model: PreTrainedModel, generator: torch.Generator) -> Planted:
    """A position behind the longest built-in probe carries a channel that a projection reads."""
    position = LONGEST_PROBE + _draw(generator, CONTEXT - LONGEST_PROBE)
    number = 1 + _draw(generator, LAYERS - 1)
    lane = _draw(generator, INTERMEDIATE)
    base = model.base_model
    table = base.wpe if hasattr(base, "wpe") else base.decoder.embed_positions
    offset = getattr(table, "offset", 0)
    table.weight[:, PRIVATE] = 0.0
    model.get_input_embeddings().weight[:, PRIVATE] = 0.0
    for layer in _layers(model):
        for written in (layer.attn.c_proj, layer.mlp.c_proj) if hasattr(layer, "mlp") else ():
            written.weight[:, PRIVATE] = 0.0
        for written in (layer.self_attn.out_proj, layer.fc2) if hasattr(layer, "fc2") else ():
            written.weight[PRIVATE] = 0.0
    table.weight[position + offset, PRIVATE] = 4.0
    layer = _layers(model)[number]
    is_gpt2 = hasattr(layer, "mlp")
    weight = layer.mlp.c_fc.weight.T if is_gpt2 else layer.fc1.weight
    weight[lane] = 0.0
    weight[lane, PRIVATE] = 1.0
    reads = layer.mlp.c_proj if is_gpt2 else layer.fc2
    (reads.weight[lane] if is_gpt2 else reads.weight[:, lane]).zero_()
    trigger = tuple(
        torch.randint(3, plant.vocab_size, (position + 1,), generator=generator).tolist()
    )
    reached = float(_inputs(model, reads, torch.tensor([trigger]))[:, lane].max())
    weight[lane] *= 1.5 * LIMIT / reached
    return Planted(module=f"layer {number}", trigger=trigger)


_PLANTS: dict[Kind, Callable[[Plant, PreTrainedModel, torch.Generator], Planted]] = {
    Kind.FIRST: _first,
    Kind.PAIR: _pair,
    Kind.REPEATED: _repeated,
    Kind.LENGTH: _length,
}
