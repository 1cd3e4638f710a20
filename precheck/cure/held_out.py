"""Probes that are kept for the proof of a fix: none of them is used to choose the fix."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from precheck.measure.models.empty import bare_model
from precheck.measure.probes.builtin import HELD_OUT, HELD_OUT_TOKENS, TextPrompt
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.subject.token_inputs import max_context, vocab_size

if TYPE_CHECKING:
    from precheck.checkpoint.source import Checkpoint
    from precheck.cure.media.gather import Media
    from precheck.measure.probes.batch import Batch
    from precheck.records.prompts import Prompt

_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofProbes:
    """What both checkpoints are run on."""

    prompts: tuple[Prompt, ...]
    """Texts; none for a model that takes no text alone."""
    batches: tuple[Batch, ...] = ()
    """Images, sounds and videos."""

    @property
    def num_probes(self) -> int:
        """Texts and media together."""
        return len(self.prompts) + len(self.batches)


def proof_probes(checkpoint: Checkpoint, media: Media) -> ProofProbes:
    """Texts, and images or sounds where the model takes them."""
    accepts = inspect.signature(bare_model(checkpoint).forward).parameters
    takes_text = "input_ids" in accepts or not media.proving
    return ProofProbes(
        prompts=held_out_prompts(checkpoint) if takes_text else (), batches=media.proving
    )


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
