"""How long the longest built-in probe can be without making a scan of a large model much longer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from precheck.errors import UsageError
from precheck.measure.probes.builtin import BUILTIN, LONG, LONG_TOKENS, PADDED, TextPrompt

if TYPE_CHECKING:
    from precheck.records.report import ModelFacts

MOST_TOKENS = 2048
"""Enough for what positions do to 16 bits: bfloat16 counts in whole numbers to 256."""

MOST_WORK = 1 << 37
"""Multiplications in a run: a model of 135 M parameters gets 1,024 tokens, one of 400 M none more
than the other probes have."""

MOST_SCORES = 1 << 26
"""Attention scores of a layer, all heads: 256 MiB in float32, materialised by eager attention."""

CONTEXT_PROBES = ("context", "vocabulary_context")
"""What it is called: written with a tokenizer, and without one."""

CONTEXT = TextPrompt(
    name=CONTEXT_PROBES[0],
    text="\n\n".join(prompt.text for prompt in (*BUILTIN, *PADDED, LONG) if not prompt.is_odd),
)
"""Ordinary texts, one after the other, and again from the beginning."""


def requested_context(context: int | Literal["max"] | None, facts: ModelFacts) -> int:
    """Tokens of the long text that the user asked for; 0 without one.

    Raises:
        UsageError: more than the model's context, or all of a context that is not known.
    """
    if context is None:
        return 0
    if context == "max":
        if facts.max_context is None:
            raise UsageError(
                "the model's config does not say how long its context is",
                hint="name a number: --context 8192",
            )
        return facts.max_context
    if facts.max_context is not None and context > facts.max_context:
        raise UsageError(
            f"a text of {context} tokens (the model's context is {facts.max_context})",
            hint="--context max",
        )
    return context


def context_tokens(facts: ModelFacts, *, is_needed: bool = False) -> int:
    """Tokens of a probe near the model's context, as far as the model's size allows.

    0 where it would not be twice as long as the longest of the others. Where it is needed (rotary
    frequencies were rounded, which tells far from the first token) the size does not count.
    """
    heads = facts.attention.num_heads if facts.attention and facts.attention.num_heads else 1
    length = min(
        facts.max_context or MOST_TOKENS,
        MOST_TOKENS,
        MOST_TOKENS if is_needed else MOST_WORK // max(1, facts.num_parameters),
        math.isqrt(MOST_SCORES // heads),
    )
    return length if length >= 2 * LONG_TOKENS else 0
