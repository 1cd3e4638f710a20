"""Which tests `make test` leaves to `make test-slow`: members of a kind whose others it runs."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

SLOW = (
    "tests/cure/test_killed.py::test_killed_again_and_again",
    "tests/gallery/test_advice.py::test_advice_*[[]gemma3-residual]",
    "tests/gallery/test_advice.py::test_advice_*[[]llama-product]",
    "tests/gallery/test_advice.py::test_advice_*[[]qwen2-vl]",
    "tests/gallery/test_advice.py::test_advice_*[[]qwen2.5-*]",
    "tests/gallery/test_advice.py::test_advice_*[[]whisper-clamp]",
    "tests/gallery/test_media.py::test_the_healthy_twin_is_silent[[]qwen2.5-vl-tower]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]gemma-prompt]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]left-padding]",
    "tests/measure/capsule/test_capsule.py::test_the_overflow_shows*[[]qwen2.5-vl-tower]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-*set()*]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-[[]{0, 1, 2}, *]",
    "tests/measure/lockstep/test_sharing.py::*[[]qwen2-eager-[[]{0, 2, 4*]",
    "tests/measure/formats/test_decoding.py::*[[]qwen3_*]",
    "tests/measure/formats/test_decoding.py::*[[]jamba]",
    "tests/measure/formats/test_independent.py::*[[]jamba]",
    "tests/measure/formats/test_independent.py::*[[]qwen2]",
    "tests/measure/formats/test_independent.py::*[[]gemma2]",
    "tests/measure/formats/test_independent.py::*[[]qwen3_next]",
    "tests/measure/formats/test_plants.py::*[[]glm]",
    "tests/measure/formats/test_plants.py::*[[]mixtral]",
    "tests/measure/formats/test_plants.py::*[[]olmo]",
    "tests/measure/formats/test_plants.py::*[[]phi]",
    "tests/measure/formats/test_plants.py::*[[]phi3]",
    "tests/measure/formats/test_plants.py::*[[]stablelm]",
    "tests/measure/formats/test_undisturbed.py::*_interruption_too[[]40]",
    "tests/measure/formats/test_undisturbed.py::*[[]gemma2]",
    "tests/served/test_plants.py::test_every_api*[[]content]",
    "tests/served/test_plants.py::test_every_api*[[]echo]",
    "tests/served/test_plants.py::test_greedy_tokens*[[]chat]",
    "tests/served/test_plants.py::test_the_configuration*[[]*eager]",
    "tests/served/test_plants.py::test_the_configuration*[[]float*]",
    "tests/served/test_plants.py::test_the_planted*[[]no-bos]",
    "tests/served/test_plants.py::test_the_planted*[[]penalty]",
    "tests/served/test_plants.py::test_the_planted*[[]seed]",
    "tests/served/test_plants.py::test_the_planted*[[]short-context]",
    "tests/served/test_plants.py::test_the_planted*[[]top-k]",
    "tests/test_docs_commands.py::test_commands_run[[]decide.md]",
    "tests/test_docs_commands.py::test_commands_run[[]exclamation-marks.md]",
    "tests/test_docs_commands.py::test_commands_run[[]fix.md]",
    "tests/test_docs_commands.py::test_commands_run[[]index.md?]",
    "tests/test_libraries.py::test_a_library_that_breaks*[[]arguments1-[AI]*]",
    "tests/zoo/test_zoo.py::*[[]Gemma3nForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]Gemma4ForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]Phi4MultimodalForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]ProphetNetForCausalLM]",
    "tests/zoo/test_zoo.py::*[[]ZayaForCausalLM]",
)
"""Patterns of their names; together about as long as a quarter of the others."""


def mark_slow(items: Iterable[pytest.Item]) -> None:
    """Give those tests the mark that ``-m "not slow"`` leaves out."""
    for item in items:
        if any(fnmatchcase(item.nodeid, pattern) for pattern in SLOW):
            item.add_marker(pytest.mark.slow)
