"""A few architectures of the survey of static scans; ``make zoo-static`` looks at them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from tests.zoo import static
from tests.zoo.build import build, kinds

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tests.zoo.build import Kind

KINDS = {kind.class_name: kind for kind in kinds()}


@pytest.mark.parametrize("name", ["FalconForCausalLM", "DeepseekV2ForCausalLM", "BambaForCausalLM"])
def test_a_healthy_model_is_silent(name: str) -> None:
    row = static.survey(KINDS[name])
    assert (row.built, row.untraced, row.faults) == (None, None, [])


def test_a_planted_norm_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(kind: Kind) -> PreTrainedModel:
        model = build(kind)
        with torch.no_grad():
            model.get_parameter("transformer.ln_f.weight")[3] = float("nan")
        return model

    monkeypatch.setattr(static, "build", planted)
    row = static.survey(KINDS["FalconForCausalLM"])
    assert [fault.startswith(("PC504", "full: PC504")) for fault in row.faults] == [True, True]
    assert "transformer.ln_f.weight" in static.line(row)
