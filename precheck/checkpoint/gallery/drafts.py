"""A model on its way to a checkpoint: seeded weights, planted faults, a fitted head.

Weights are random, except the head of a decoder, which is fitted to the packaged text. So the model
has a perplexity worth comparing, and it depends on what the layers compute.

Faults are planted in *channels* of the residual stream that nothing else writes to. A trigger
(certain tokens, or all) carries a value in one channel; a neuron of one layer reads it, and writes
a large value into another. So a fault has the intended place and size, and every other channel
keeps its precision in every dtype, as in the real models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from precheck.checkpoint.gallery.vocabularies import packaged_text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from torch import Tensor
    from transformers import (
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        ProcessorMixin,
    )

TRIGGER = 0
"""Channel that makes a neuron fire."""
SPIKE = 1
"""Channel it writes to."""

_TRIGGER_SIZE = 64.0
"""Of the trigger in the embedding: it outweighs the other channels, which are of the order of one,
so that its size after a norm hardly depends on them."""

_ATTENTION_GAIN, _MLP_GAIN = 0.5, 0.8
_HEAD_SHARPNESS = 80.0
"""Logit of a token the fitted head is certain of; sharp, as a trained model's are."""
_HEAD_RIDGE = 0.3
"""Weight decay of the fit; final hidden states have unit variance."""
_WINDOW, _STRIDE = 64, 16
"""Tokens the head is fitted on at a time, and how far the next window starts."""

ATTENTION_OUTPUTS = ("o_proj.weight", "out_proj.weight", "Attention.o.weight", ".attn.proj.weight")
MLP_OUTPUTS = ("down_proj.weight", "fc2.weight", "wo.weight")


class Draft:
    """Weights of a model, float32, by the names the checkpoint will have.

    Args:
        model_class: transformers' class.
        config: its config.
        gain: factor on a weight's standard deviation, by name.
        norm: value of every norm's weight; 0 where the norm multiplies by ``1 + w``.
    """

    def __init__(
        self,
        model_class: type[PreTrainedModel],
        config: PreTrainedConfig,
        *,
        gain: Callable[[str], float] = lambda _: 1.0,
        norm: float = 1.0,
    ) -> None:
        self.config = config
        self._make: Callable[[PreTrainedConfig], PreTrainedModel] = model_class
        config.architectures = [model_class.__name__]
        with torch.device("meta"):
            model = self._empty()
            shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        generator = torch.Generator().manual_seed(0)
        self.weights = {
            name: _draw(name, shape=shape, generator=generator, norm=norm) * gain(name)
            for name, shape in shapes.items()
        }

    def _empty(self) -> PreTrainedModel:
        return self._make(self.config)

    def model(self) -> PreTrainedModel:
        """The model with the current weights, float32, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):  # its own first weights come from the global one
            model: PreTrainedModel = self._empty().float().eval()
        model.load_state_dict(self.weights, strict=False)
        return model

    def named(self, ending: str) -> list[str]:
        """Names of the weights with this ending."""
        return [name for name in self.weights if name.endswith(ending)]

    def reserve(self, *channels: int, within: str = "", embedding: str) -> None:
        """Reserves channels of a residual stream for the fault: nothing else writes to them.

        Args:
            channels: of the hidden size.
            within: prefix of the layers that write to that stream.
            embedding: the weight that the stream starts from, ``(tokens, hidden)``.
        """
        reserved = list(channels)
        self.weights[embedding][:, reserved] = 0.0
        for name in self.weights:
            if name.startswith(within) and name.endswith(ATTENTION_OUTPUTS + MLP_OUTPUTS):
                self.weights[name][reserved] = 0.0

    def trigger(
        self,
        embedding: str,
        tokens: Collection[int] | None = None,
        *,
        size: float = _TRIGGER_SIZE,
    ) -> None:
        """Marks tokens, or all of them, in the trigger's channel."""
        rows = slice(None) if tokens is None else sorted(tokens)
        self.weights[embedding][rows, TRIGGER] = size

    def input_of(self, module: str, inputs: dict[str, Tensor]) -> Tensor:
        """The input of a module in a float32 forward, ``(tokens, size)``."""
        captured: list[Tensor] = []
        model = self.model()
        handle = model.get_submodule(module).register_forward_pre_hook(
            lambda _, args: captured.append(args[0].flatten(0, -2))
        )
        with torch.no_grad():
            model(**inputs)
        handle.remove()
        return captured[0]

    def fire(self, mlp: str, inputs: dict[str, Tensor], *, gate: float, up: float) -> None:
        """Makes neuron 0 of a gated MLP answer the trigger with ``act(gate) * up``.

        Args:
            mlp: name of the module.
            inputs: of a forward with the trigger, whose size there sets the weights.
            gate: input of the activation function, large enough to pass it unchanged.
            up: the other factor.
        """
        size = float(self.input_of(mlp, inputs)[:, TRIGGER].max())
        for name, value in (("gate_proj", gate), ("up_proj", up)):
            row = self.weights[f"{mlp}.{name}.weight"][0]
            row.zero_()
            row[TRIGGER] = value / size
        self.weights[f"{mlp}.down_proj.weight"][:, 0] = 0.0

    def fit_head(self, head: str, tokenizer: PreTrainedTokenizerBase) -> None:
        """Ridge regression from the final hidden states to the next token, in float64."""
        ids = torch.tensor(tokenizer(packaged_text())["input_ids"])
        windows = ids.unfold(0, _WINDOW + 1, _STRIDE)
        vocab_size, hidden_size = self.weights[head].shape
        features = self.input_of(
            head.removesuffix(".weight"), {"input_ids": windows[:, :-1]}
        ).double()
        targets = torch.nn.functional.one_hot(windows[:, 1:].flatten(), vocab_size).double()
        decay = _HEAD_RIDGE * len(features) * torch.eye(hidden_size, dtype=torch.float64)
        fitted: Tensor = torch.linalg.solve(features.T @ features + decay, features.T @ targets)
        self.weights[head] = (_HEAD_SHARPNESS * fitted.T).float()

    def save(
        self,
        folder: Path,
        *,
        tokenizer: PreTrainedTokenizerBase | ProcessorMixin,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        """Writes weights, config, generation config, and tokenizer or processor."""
        stored = {name: tensor.to(dtype).contiguous() for name, tensor in self.weights.items()}
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        self.config.dtype = dtype
        self.config.save_pretrained(folder)
        tokens = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        # a vision model has them in its text config
        text_config = self.config.get_text_config(decoder=True)
        token_ids = {
            name: getattr(self.config if hasattr(self.config, name) else text_config, name, None)
            for name in tokens
        }
        GenerationConfig(**token_ids).save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _draw(name: str, *, shape: torch.Size, generator: torch.Generator, norm: float) -> Tensor:
    if name.endswith("bias"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.full(shape, norm)
    is_embedding = name.endswith(("embed_tokens.weight", "shared.weight"))
    spread = 1.0 if is_embedding else shape[1:].numel() ** -0.5
    if name.endswith(ATTENTION_OUTPUTS):
        spread *= _ATTENTION_GAIN
    elif name.endswith(MLP_OUTPUTS):
        spread *= _MLP_GAIN
    return torch.randn(shape, generator=generator) * spread
