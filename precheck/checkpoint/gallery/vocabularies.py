"""Real tokenizers, trained on the packaged text when a model is built."""

from __future__ import annotations

import json
import math
from importlib import resources
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import GemmaTokenizer, LlamaTokenizer, Qwen2Tokenizer, T5Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 2048
"""Context of every built-in model."""

_NUM_TOKENS = 1024
_TURN_START, _TURN_END = "<|im_start|>", "<|im_end|>"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""**Source**: Qwen2's, without its default system message:
https://huggingface.co/Qwen/Qwen2-7B-Instruct/blob/main/tokenizer_config.json"""

_GEMMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
"""**Source**: Gemma's, for turns of the user alone:
https://huggingface.co/google/gemma-2b-it/blob/main/tokenizer_config.json"""


def packaged_text() -> str:
    """The text that tokenizers are trained on and heads are fitted to."""
    return resources.files("precheck.checkpoint.gallery").joinpath("text.txt").read_text("utf-8")


def text_ids(tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> Tensor:
    """The beginning of the packaged text, ``(1, num_tokens)`` int64."""
    return torch.tensor([tokenizer(packaged_text())["input_ids"][:num_tokens]])


def known_ids(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> set[int]:
    """Ids of those of the tokens that are in the vocabulary."""
    vocabulary = tokenizer.get_vocab()
    return {vocabulary[token] for token in tokens if token in vocabulary}


def qwen2_tokenizer(
    *, special_tokens: tuple[str, ...] = (), chat_template: str = _CHAT_TEMPLATE
) -> Qwen2Tokenizer:
    """A byte-level tokenizer; token 0 is ``!``, as in GPT-2 and Qwen."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = Qwen2Tokenizer().backend_tokenizer.pre_tokenizer
    # Sorted by code point, the byte alphabet starts with "!".
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_TOKENS,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(packaged_text().split("\n\n"), trainer)
    model = json.loads(trained.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=_pairs(model),
        additional_special_tokens=[_TURN_START, _TURN_END, *special_tokens],
        chat_template=chat_template,
        model_max_length=MAX_TOKENS,
    )


def gemma_tokenizer() -> GemmaTokenizer:
    """Words with byte fallback and every digit by itself; token 0 is ``<pad>``, as in Gemma."""
    model = _word_pieces(("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"))
    return GemmaTokenizer(
        vocab=model["vocab"],
        merges=_pairs(model),
        add_bos_token=True,
        chat_template=_GEMMA_TEMPLATE,
        model_max_length=MAX_TOKENS,
    )


def llama_tokenizer() -> LlamaTokenizer:
    """The tokenizer of Gemma with Llama's special tokens; ``<s>`` begins every text."""
    model = _word_pieces(("<unk>", "<s>", "</s>"))
    return LlamaTokenizer(
        vocab=model["vocab"],
        merges=_pairs(model),
        add_bos_token=True,
        pad_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def t5_tokenizer() -> T5Tokenizer:
    """The same pieces, each with a probability, frequent ones first; ``</s>`` ends every text.

    They are not trained as a unigram model, because that gives other pieces every time.
    """
    special = ("<pad>", "</s>", "<unk>")
    pieces = sorted(_word_pieces(special)["vocab"].items(), key=itemgetter(1))
    kept = [piece for piece, _ in pieces if not piece.startswith("<0x")]
    return T5Tokenizer(
        vocab=[(piece, -math.log(rank + 1)) for rank, piece in enumerate(kept)],
        extra_ids=0,
        model_max_length=MAX_TOKENS,
    )


def _word_pieces(special_tokens: tuple[str, ...]) -> dict[str, Any]:
    """Vocabulary and merges as sentencepiece would find them: no piece spans two words."""
    trained = Tokenizer(models.BPE(byte_fallback=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"▁|\n"), "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=_NUM_TOKENS,
        min_frequency=2,
        special_tokens=[*special_tokens, *bytes_],
        initial_alphabet=["▁", *map(str, range(10))],
        show_progress=False,
    )
    trained.train_from_iterator(packaged_text().split("\n\n"), trainer)
    model: dict[str, Any] = json.loads(trained.to_str())["model"]
    return model


def _pairs(model: dict[str, Any]) -> list[str]:
    """Merges as the tokenizer classes take them: tuples, whatever their annotation says."""
    return [tuple(pair) for pair in model["merges"]]  # type: ignore[misc]
