"""A few architectures of the survey of formats; ``make zoo-formats`` looks at them all."""

from __future__ import annotations

import pytest

from tests.zoo.build import kind_of
from tests.zoo.formats import Row, line, survey

ODD = {
    # the last layers read the keys of earlier ones
    "Gemma3nForCausalLM": 6,
    # an indexer keeps keys of its own beside the latent ones
    "DeepseekV32ForCausalLM": 8,
    "T5ForConditionalGeneration": 16,
}
"""With the number of parts that a cache stores."""


@pytest.mark.parametrize("name", ODD)
def test_every_part_counts_and_one_forward_is_what_decoding_gives(name: str) -> None:
    row = survey(kind_of(name))
    assert (row.built, row.cache, row.failures, row.faults) == (None, None, {}, [])
    assert len(row.parts) == ODD[name]
    assert row.not_decoded is None


def test_a_line_says_what_is_wrong() -> None:
    row = Row(kind=kind_of("Qwen2ForCausalLM"), without_effect=("3.keys",), is_repeatable=False)
    assert line(row).endswith(
        "| without effect: 3.keys; a forward changes what the next one gives |"
    )
