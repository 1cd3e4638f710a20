"""A few architectures of the survey that precheck once had wrong; ``make zoo`` scans them all."""

from __future__ import annotations

import pytest

from tests.pinned import marks
from tests.zoo.build import build, kind_of
from tests.zoo.plant import plant
from tests.zoo.survey import page, summary, survey

ODD = {
    # passes a cache on although none was asked for
    "GraniteMoeForCausalLM": None,
    # asks the embedding for its device before its weights are there; rotates complex numbers
    "Llama4ForConditionalGeneration": None,
    # layers have different sizes, and its config refuses to be asked for one
    "Gemma4ForCausalLM": "PC201",
    # four streams of hidden states, (streams, batch, seq, hidden)
    "Gemma3nForCausalLM": None,
    # its audio tower is deeper than its decoder
    "Phi4MultimodalForCausalLM": None,
    # adds two masks of float16 in float32
    "ProphetNetForCausalLM": None,
    # an epsilon of the dtype makes float32 larger than anything float16 holds
    "ZayaForCausalLM": None,
}


PINNED = {
    "Llama4ForConditionalGeneration": "broken in transformers 5.24",
    "ZayaForCausalLM": "what is found in it is what the tested transformers computes",
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name, PINNED)) for name in ODD])
def test_it_is_scanned_silent_when_healthy_and_named_when_planted(name: str) -> None:
    row = survey(kind_of(name))
    assert row.built is None
    assert (row.refused, row.crashed) == (None, None)
    assert row.num_layers_right
    assert row.alarms == ()
    expected = ODD[name]
    assert [each[:5] for each in row.confirmed][:1] == ([] if expected is None else [expected])
    assert row.planted is not None
    assert row.named == row.planted


def test_what_is_planted_is_in_the_middle_layer() -> None:
    assert plant(build(kind_of("Qwen2ForCausalLM"))) == "model.layers.2.self_attn.q_proj"


def test_the_page_tells_what_was_not_right() -> None:
    row = survey(kind_of("Qwen2ForCausalLM"))
    row.named = "another"
    row.alarms = ("PC101 <b>",)
    text = page([row])
    assert "false alarm: PC101 &lt;b>" in text
    assert "named `another`" in text
    assert "| all | 1 of 1 | 1 | 1 | 0 | 1 | 0 |" in summary([row])
