"""Text that is generated with a format on is what plain transformers generates with it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch

from precheck.measure.lockstep import decoding
from precheck.measure.lockstep.decoding import Decoding, _SeededSampling
from precheck.pipeline import scan
from precheck.records.traces import GREEDY
from tests.measure.formats.plain_caches import CACHES, PlainCache, rounding_cache
from tests.measure.formats.plain_weights import WEIGHTS
from tests.measure.formats.test_independent import OTHERS, model_named
from tests.measure.lockstep.test_truth import same_bits
from tests.tiny_models import architectures, save_checkpoint, tiny_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from precheck.measure.lockstep.decoding import Decoded
    from precheck.records.configuration import Configuration

pytestmark = pytest.mark.usefixtures("native")

LENGTH, NUM_TOKENS = 24, 12
"""Of the prompt and of the answer: Gemma's window of 16 tokens is full before the first."""
PROMPT = tiny_inputs("llama", batch=1, length=LENGTH)["input_ids"]

Written = tuple[list[int], "list[Tensor]"]
"""Tokens, and the scores that each was chosen by."""


def written_by_scan(folder: Path, **formats: Any) -> dict[tuple[str | None, str | None], Written]:
    """What each run generates greedily, by its formats."""
    found: list[tuple[Configuration, Decoded, list[Tensor]]] = []
    decode = Decoding._decode  # noqa: SLF001
    of_thread = threading.local()

    def recording(self: Decoding, strategy: str) -> Decoded:
        of_thread.scores = []
        decoded = decode(self, strategy)
        found.append((self._skeleton.configuration, decoded, of_thread.scores))
        return decoded

    class Recording(_SeededSampling):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            of_thread.scores.append(scores.clone())
            return super().__call__(input_ids, scores)

    with (
        mock.patch.object(Decoding, "_decode", recording),
        mock.patch.object(decoding, "_SeededSampling", Recording),
    ):
        scan(
            folder,
            dtypes=["bfloat16"],
            attn_implementations=["eager"],
            prompts=[PROMPT[0].tolist()],
            generate=NUM_TOKENS,
            **formats,
        )
    assert [decoded.error for _, decoded, _ in found] == [None] * len(found)
    return {
        (configuration.kv_cache_dtype, configuration.quantization): (decoded.tokens, scores)
        for configuration, decoded, scores in found
        if configuration.dtype == "bfloat16" and decoded.strategy == GREEDY
    }


def assert_plainly_written(written: Written, model: Any, **inputs: Any) -> None:
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor([[model.config.decoder_start_token_id]])
    num_before = 1 if model.config.is_encoder_decoder else LENGTH
    with torch.no_grad():
        output = model.generate(
            input_ids=PROMPT,
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **inputs,
        )
    tokens, scores = written
    assert tokens == output.sequences[0, num_before:].tolist()
    assert len(scores) == len(output.scores) > 1
    for found, expected in zip(scores, output.scores, strict=True):
        assert same_bits(found, expected)


def plain_model(name: str, folder: Path) -> Any:
    return type(model_named(name)).from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="eager"
    )


CASES = [*architectures(["llama", "gemma2", "gemma3", "qwen3_moe", "gpt2", "t5"]), *OTHERS]


@pytest.mark.parametrize("name", CASES)
def test_with_a_cache_in_a_format(name: str, tmp_path: Path) -> None:
    save_checkpoint(model_named(name), tmp_path, tokenizer=False)
    written = written_by_scan(tmp_path, kv_cache_dtypes=["fp8_e4m3", "int4"])
    model = plain_model(name, tmp_path)
    for (form, _), by_run in written.items():
        plain = CACHES[form] if form else PlainCache.of_both(torch.Tensor.float)
        cache = rounding_cache(plain, model.config)
        assert_plainly_written(by_run, model, past_key_values=cache)
    assert set(written) == {(None, None), ("fp8_e4m3", None), ("int4", None)}


@pytest.mark.parametrize("name", architectures(["gemma2", "qwen3_moe", "gpt2", "t5"]))
def test_with_weights_in_a_format(name: str, tmp_path: Path) -> None:
    save_checkpoint(model_named(name), tmp_path, tokenizer=False)
    written = written_by_scan(tmp_path, quantizations=["fp8", "int4"])
    for (_, form), by_run in written.items():
        model = plain_model(name, tmp_path)
        if form:
            WEIGHTS[form](model)
        assert_plainly_written(by_run, model)
    assert set(written) == {(None, None), (None, "fp8"), (None, "int4")}
