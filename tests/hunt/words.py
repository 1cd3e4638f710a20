"""Tokenizers of any size, and ids of theirs that are texts: byte-level BPE of made-up words."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from precheck.measure.probes.builtin import BUILTIN, LONG

if TYPE_CHECKING:
    from pathlib import Path

PAD, BOS, EOS = 0, 1, 2
_SPACE = "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"
"""How byte-level BPE writes it."""
_SYLLABLES = [first + second for first in "bcdfghjklmnprstvwz" for second in "aeiou"]


@cache
def _trained(size: int) -> str:
    generator = torch.Generator().manual_seed(1)
    words = [
        "".join(_SYLLABLES[index] for index in row[: 3 + row[4] % 3])
        for row in torch.randint(len(_SYLLABLES), (5 * size // 4, 5), generator=generator).tolist()
    ]
    texts = [*(prompt.text for prompt in (*BUILTIN, LONG)), *(f" {word}" for word in words)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tokenizer.to_str()


def tokenizer(size: int, *, adds_bos: bool) -> PreTrainedTokenizerFast:
    """The tokenizer, which puts ``<s>`` before every text or nothing."""
    made = Tokenizer.from_str(_trained(size))
    if adds_bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", BOS)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


_CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def image_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """The tokenizer with the tokens of Qwen's images, and a chat template that places them."""
    made = tokenizer(size, adds_bos=False)
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    made.add_special_tokens({"additional_special_tokens": names})
    made.chat_template = _CHAT_TEMPLATE
    return made


@cache
def whole_words(size: int) -> tuple[int, ...]:
    """Tokens that begin with a space: any of them one after the other are a text."""
    made = Tokenizer.from_str(_trained(size))
    names = {token: made.id_to_token(token) or "" for token in range(made.get_vocab_size())}
    return tuple(
        token for token, name in names.items() if name.startswith(_SPACE) and len(name) > 3
    )


def save_tokenizer(folder: Path, *, size: int, adds_bos: bool) -> None:
    """Its files."""
    tokenizer(size, adds_bos=adds_bos).save_pretrained(folder)
