"""A prompt that attends to keys and values before they are stored, beside plain transformers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import precheck
from tests.measure.formats.plain_caches import CACHES, RoundingCache, rounding_cache
from tests.measure.formats.plain_weights import WEIGHTS
from tests.measure.formats.test_plants import healthy, with_key_bias
from tests.tiny_models import PAD, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

NUM_TOKENS = 96
HALF = NUM_TOKENS // 2
pytestmark = pytest.mark.usefixtures("native")


class LateCache(RoundingCache):
    """Keeps what int8 gives back, and hands out what came as long as it is the prompt."""

    is_prompt = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        read = super().update(key_states, value_states, *args, **kwargs)
        return (key_states, value_states) if self.is_prompt else read


def log_probabilities(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(dim=-1)


def typical_kl(expected: Tensor, found: Tensor) -> float:
    """Without the worst fiftieth of the tokens, as a text is judged."""
    kl = (expected.exp() * (expected - found)).sum(dim=-1)
    num_kept = len(kl) - math.ceil(0.02 * len(kl))
    return float(kl.sort().values[:num_kept].mean())


@pytest.mark.parametrize("quantization", [None, "int8_weight"])
def test_both_views_are_those_of_plain_transformers(
    quantization: str | None, tmp_path: Path
) -> None:
    save_checkpoint(with_key_bias(healthy("qwen2"), head=1), tmp_path, tokenizer=True)
    ids = torch.randint(0, PAD, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(1))
    report = precheck.scan(
        tmp_path,
        dtypes=["float16"],
        attn_implementations=["sdpa"],
        require=f"float16+sdpa+kv:int8{f'+q:{quantization}' if quantization else ''}",
        prompts=[ids[0].tolist()],
    )
    culprits = report.runs[-1].format_culprits
    assert culprits is not None
    reference, model = (
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, attn_implementation="sdpa")
        for dtype in (torch.float32, torch.float16)
    )
    if quantization is not None:
        WEIGHTS[quantization](model)
    with torch.no_grad():
        expected = log_probabilities(reference(ids).logits[0])[HALF:]
        whole = model(ids, past_key_values=rounding_cache(CACHES["int8"], model.config)).logits[0]
        late = LateCache(CACHES["int8"], model.config)
        prompt = model(ids[:, :HALF], past_key_values=late).logits[0]
        late.is_prompt = False
        rest = model(ids[:, HALF:], past_key_values=late).logits[0]
        plain = model(ids[:, :HALF]).logits[0]
    assert torch.equal(prompt, plain), "the prompt itself shows nothing of the format"
    stored = typical_kl(expected, log_probabilities(whole[HALF:]))
    unstored = typical_kl(expected, log_probabilities(rest))
    assert culprits.after_stored_prompt == pytest.approx(stored, rel=1e-6)
    assert culprits.after_unstored_prompt == pytest.approx(unstored, rel=1e-6)
    assert unstored > 0.5 * stored > 0.05, "what follows a clean prompt is lost all the same"
    assert unstored != stored
