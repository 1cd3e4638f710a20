"""Which tests `make test` leaves to `make test-slow`: members of a kind whose others it runs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOW = (
    "tests/cure/test_fix.py::test_a_rescaled_checkpoint_is_the_same_model[[]GPT-2-*]",
    "tests/cure/test_fix.py::test_a_rescaled_checkpoint_is_the_same_model[[]Llama-*]",
    "tests/cure/test_fix.py::test_a_rescaled_checkpoint_is_the_same_model[[]Phi-3-*]",
    "tests/cure/test_killed.py::test_killed_again_and_again",
    "tests/cure/test_media.py::test_what_images_write_is_scaled_too[[]Idefics 3]",
    "tests/cure/test_media.py::test_what_images_write_is_scaled_too[[]LLaVA]",
    "tests/gallery/test_advice.py::test_advice_*[[]gemma3-residual]",
    "tests/gallery/test_advice.py::test_advice_*[[]llama-product]",
    "tests/gallery/test_advice.py::test_advice_*[[]qwen2-vl]",
    "tests/gallery/test_advice.py::test_advice_*[[]qwen2.5-*]",
    "tests/gallery/test_advice.py::test_advice_*[[]whisper-clamp]",
    "tests/gallery/test_media.py::test_the_healthy_twin_is_silent[[]qwen2.5-vl-tower]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]bloom]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]gemma2]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]gpt2]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]gpt_neox]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]llama]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]mixtral]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]opt]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]phi3]",
    "tests/measure/blame/test_silence.py::test_a_healthy_model_*[[]qwen3]",
    "tests/measure/blame/test_silence.py::test_tokens_sent_to_other_experts_*[[]*-mixtral]",
    "tests/measure/blame/test_silence.py::test_tokens_sent_to_other_experts_*[[]last-*]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]gemma-prompt]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]left-padding]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]qwen2.5-vl-tower]",
    "tests/measure/formats/test_decoding.py::*[[]jamba]",
    "tests/measure/formats/test_decoding.py::*[[]qwen3_*]",
    "tests/measure/formats/test_independent.py::*[[]gemma2]",
    "tests/measure/formats/test_independent.py::*[[]jamba]",
    "tests/measure/formats/test_independent.py::*[[]qwen2]",
    "tests/measure/formats/test_independent.py::*[[]qwen3_next]",
    "tests/measure/formats/test_plants.py::*[[]glm]",
    "tests/measure/formats/test_plants.py::*[[]mixtral]",
    "tests/measure/formats/test_plants.py::*[[]olmo]",
    "tests/measure/formats/test_plants.py::*[[]phi3]",
    "tests/measure/formats/test_plants.py::*[[]phi]",
    "tests/measure/formats/test_plants.py::*[[]stablelm]",
    "tests/measure/formats/test_undisturbed.py::*[[]gemma2]",
    "tests/measure/formats/test_undisturbed.py::*[[]gpt2]",
    "tests/measure/formats/test_undisturbed.py::*[[]t5]",
    "tests/measure/formats/test_undisturbed.py::*_interruption_too[[]40]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-*set()*]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-[[]{0, 1, 2}, *]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-[[]{0, 2, 4*]",
    "tests/measure/lockstep/test_sharing.py::test_every_way_*[[]mixtral-[[]{0, 1, 2}*]",
    "tests/measure/lockstep/test_sharing.py::test_every_way_*[[]mixtral-[[]{0, 9}*]",
    "tests/measure/lockstep/test_truth.py::test_lockstep_runs_equal_*[[]gpt2]",
    "tests/measure/lockstep/test_truth.py::test_lockstep_runs_equal_*[[]llama]",
    "tests/measure/lockstep/test_truth.py::test_lockstep_runs_equal_*[[]opt]",
    "tests/measure/lockstep/test_truth.py::test_lockstep_runs_equal_*[[]phi3]",
    "tests/measure/lockstep/test_truth.py::test_lockstep_runs_equal_*[[]qwen3]",
    "tests/measure/models/test_streaming.py::test_by_*[[]bloom]",
    "tests/measure/models/test_streaming.py::test_by_*[[]gemma2]",
    "tests/measure/models/test_streaming.py::test_by_*[[]gpt_neox]",
    "tests/measure/models/test_streaming.py::test_by_*[[]llama]",
    "tests/measure/models/test_streaming.py::test_by_*[[]mixtral]",
    "tests/measure/models/test_streaming.py::test_by_*[[]opt]",
    "tests/measure/models/test_streaming.py::test_by_*[[]phi3]",
    "tests/measure/models/test_streaming.py::test_by_*[[]qwen3]",
    "tests/measure/probes/test_padding.py::test_a_model_that_refuses_batches_*[[]gpt2-*]",
    "tests/measure/probes/test_padding.py::test_a_model_that_refuses_batches_*[[]opt-*]",
    "tests/measure/test_fp8_cache.py::*[[]cohere]",
    "tests/measure/test_fp8_cache.py::*[[]glm]",
    "tests/measure/test_fp8_cache.py::*[[]granite]",
    "tests/measure/test_fp8_cache.py::*[[]mixtral]",
    "tests/measure/test_fp8_cache.py::*[[]phi]",
    "tests/measure/test_fp8_cache.py::*[[]qwen2_moe]",
    "tests/measure/test_fp8_cache.py::*[[]stablelm]",
    "tests/test_custom_code.py::*[[]a block is called by keyword]",
    "tests/test_custom_code.py::*[[]a block returns a dataclass]",
    "tests/test_custom_code.py::*[[]a block returns a list]",
    "tests/test_custom_code.py::*[[]blocks are checkpointed]",
    "tests/test_custom_code.py::*[[]blocks are compiled]",
    "tests/test_custom_code.py::*[[]the answer is a dict]",
    "tests/test_custom_code.py::*[[]the answer is a tuple]",
    "tests/test_docs_commands.py::test_commands_run[[]decide.md]",
    "tests/test_docs_commands.py::test_commands_run[[]exclamation-marks.md]",
    "tests/test_docs_commands.py::test_commands_run[[]fix.md]",
    "tests/test_docs_commands.py::test_commands_run[[]index.md?]",
    "tests/test_hostile.py::test_nobody_is_asked_*[[]arguments1-*]",
    "tests/test_hostile.py::test_nobody_is_asked_*[[]arguments2-*]",
    "tests/test_libraries.py::test_a_library_that_breaks*[[]arguments0-[AI]*]",
    "tests/test_libraries.py::test_a_library_that_breaks*[[]arguments1-[AI]*]",
    "tests/test_rented_gpu.py::test_it_tries_*[[]float16+eager-1]",
    "tests/zoo/test_zoo.py::*[[]Gemma3nForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]Gemma4ForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]Phi4MultimodalForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]ProphetNetForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]ZayaForCausalLM]",
)
"""Patterns of their names; together about as long as half of the others."""


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Give those tests the mark that ``-m "not slow"`` leaves out."""
    for item in items:
        if any(fnmatchcase(item.nodeid, pattern) for pattern in SLOW):
            item.add_marker(pytest.mark.slow)
