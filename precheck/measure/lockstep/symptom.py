"""What a user of a broken run would see, from its real logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from precheck.records.traces import Symptom

if TYPE_CHECKING:
    from torch import Tensor

Decode = Callable[[Sequence[int]], str | None]
"""Token ids to text; None without a tokenizer."""

NUM_REPEATS = 8


def symptom_of(logits: Tensor, unexpected: Tensor, *, decode: Decode) -> Symptom | None:
    """Greedy decoding and sampling at the last broken position of the first broken row.

    Args:
        logits: ``(batch, seq, vocab)``; an output of another shape has no symptom (None).
        unexpected: which elements are broken, the same shape, bool.
        decode: token ids to text.
    """
    if logits.dim() != 3:  # noqa: PLR2004
        return None
    broken = unexpected.any(dim=-1)
    row = int(broken.any(dim=1).nonzero()[0])
    position = int(broken[row].nonzero()[-1])
    scores = logits[row, position].float()
    token = int(scores.argmax())
    return Symptom(
        greedy=_greedy(token, decode, is_all_nan=bool(scores.isnan().all())),
        sampling=_sampling(scores),
    )


def answer_of(output: Tensor, *, has_logits: bool) -> Symptom:
    """What users see of the broken answer of a model that generates nothing.

    Args:
        output: logits of any shape, or hidden states.
        has_logits: the model has a head.
    """
    if not has_logits:
        answer = "an embedding of NaN: every similarity with it is NaN, and no search returns it"
    elif output.shape[-1] == 1:
        answer = "a NaN score: null in JSON, with no place in a ranking"
    else:
        answer = "NaN for every label: argmax returns the first"
    return Symptom(answer=answer)


def _greedy(token: int, decode: Decode, *, is_all_nan: bool) -> str:
    text = decode([token] * NUM_REPEATS)
    shown = "" if text is None else f": {text}"
    why = " (every logit is NaN, and argmax of NaN is index 0)" if is_all_nan and not token else ""
    return f"repeats token {token}{why}{shown}"


def _sampling(scores: Tensor) -> str:
    """The error that sampling raises, or what it would do instead."""
    try:
        torch.multinomial(
            scores.softmax(dim=-1),
            num_samples=1,
            generator=torch.Generator(scores.device),  # leaves the caller's generator alone
        )
    except RuntimeError as error:
        return f"raises RuntimeError: {str(error).splitlines()[0]}"
    return "samples from wrong scores without an error"
