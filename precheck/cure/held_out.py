"""Probes that are kept for the proof of a fix: none of them is used to choose the fix."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.models.empty import bare_model
from precheck.measure.probes.builtin import HELD_OUT, HELD_OUT_TOKENS, TextPrompt
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.subject.token_inputs import max_context, vocab_size

if TYPE_CHECKING:
    from precheck.checkpoint.source import Checkpoint
    from precheck.records.prompts import Prompt

_SEED = 20


def held_out_prompts(checkpoint: Checkpoint) -> tuple[Prompt, ...]:
    """Texts; random token ids if there is no tokenizer or no text fits the context."""
    model = bare_model(checkpoint)
    size = vocab_size(model)
    limit = max_context(model)
    vocabulary = read_vocabulary(checkpoint, size=size)
    texts = []
    for text in HELD_OUT:
        ids = vocabulary.encode(TextPrompt(name="held out", text=text)) or []
        if ids and vocabulary.has_all(ids) and len(ids) <= (limit or len(ids)):
            texts.append(text)
    if texts:
        return tuple(texts)
    length = min(HELD_OUT_TOKENS, limit or HELD_OUT_TOKENS)
    generator = torch.Generator().manual_seed(_SEED)
    rows = torch.randint(0, size, (len(HELD_OUT), length), generator=generator)
    return tuple(map(tuple, rows.tolist()))
