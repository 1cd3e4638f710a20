"""Tokens that few texts begin with: some models break on one of them alone.

**Idea.** The first position attends to nothing but itself, so whatever its token's embedding
carries goes on undiluted. Which token could matter shows in the embedding itself: a value far
outside its column, a vector much longer or shorter than the others. Single odd characters are
tried besides.

**What it cannot see.** A token that looks like all others, and what needs two tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.probes.builtin import TextPrompt

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.probes.vocabulary import Vocabulary

CHARACTERS = "zqxjkv079#@$%&*<{~^"
BLOCK_ROWS = 512
"""Their float32 values stay in a core's cache."""
NUM_PEAKS = 16
NUM_LONGEST = NUM_SHORTEST = 4


def odd_first_tokens(vocabulary: Vocabulary, embedding: Tensor | None) -> list[int]:
    """Ids to begin a text with, each once, none of them special.

    Args:
        vocabulary: the tokenizer, if there is one.
        embedding: ``(vocab, hidden)``, any floating-point dtype; None where it was not read.
    """
    candidates = [] if embedding is None else _outliers(embedding)
    for character in CHARACTERS:
        ids = vocabulary.encode(TextPrompt(name=character, text=character, kind="bare")) or ()
        candidates += ids[-1:]
    special = set(getattr(vocabulary.tokenizer, "all_special_ids", ()))
    return [
        token
        for token in dict.fromkeys(candidates)
        if token not in special and vocabulary.has_all([token])
    ]


def _outliers(embedding: Tensor) -> list[int]:
    """Rows with the values farthest outside their columns, and the longest and shortest rows."""
    num_rows, width = embedding.shape
    parts = embedding.split(BLOCK_ROWS)  # never all of it in float32
    of_columns, of_rows = embedding.new_zeros(width, dtype=torch.float32), []
    for part in parts:
        squares = part.to(torch.float32, copy=True).square_()
        of_columns += squares.sum(dim=0)
        of_rows.append(squares.sum(dim=-1))
    norms = torch.cat(of_rows).sqrt_()
    scale = (of_columns / num_rows).sqrt().clamp_min(1e-30)
    peaks = torch.cat(
        [part.to(torch.float32, copy=True).abs_().div_(scale).amax(dim=-1) for part in parts]
    )
    return [
        *peaks.topk(min(NUM_PEAKS, num_rows)).indices.tolist(),
        *norms.topk(min(NUM_LONGEST, num_rows)).indices.tolist(),
        *norms.topk(min(NUM_SHORTEST, num_rows), largest=False).indices.tolist(),
    ]
