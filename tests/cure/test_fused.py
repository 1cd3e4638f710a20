"""One part of a fused matrix, or one of several merged experts, is rescaled by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from precheck.cure.fix import FixRequest, fix
from precheck.measure.lockstep.witness import PeakWitness
from precheck.records.outcomes.fix import Exactness, Remedy
from precheck.records.precision import Dtype
from tests.cure.fused import FUSED, planted_model
from tests.tiny_models import save_checkpoint
from tests.zoo.build import forward

if TYPE_CHECKING:
    from pathlib import Path

CURED = (
    ("BLOOM", "values"),
    ("Falcon, grouped", "values"),
    ("ModernBERT", "values"),
    ("GLM-4", "up"),
    ("OLMoE", "one expert"),
)
"""One of each way to fuse; ``make fixes`` does all."""


@pytest.mark.parametrize("case", FUSED, ids=" ".join)
def test_plants_keep_the_function(case: tuple[str, str]) -> None:
    healthy, planted = (planted_model(FUSED[case], power=power) for power in (0, 17))
    assert torch.equal(forward(healthy).logits, forward(planted).logits)


@pytest.mark.parametrize("case", CURED, ids=" ".join)
def test_the_planted_part_alone_is_rescaled(case: tuple[str, str], tmp_path: Path) -> None:
    fused = FUSED[case]
    save_checkpoint(planted_model(fused), tmp_path / "model", tokenizer=True)
    outcome = fix(
        str(tmp_path / "model"), tmp_path / "fixed", request=FixRequest(), observe=lambda _: None
    )
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True), outcome.reasons
    assert outcome.proof is not None
    assert outcome.proof.exactness is Exactness.EXACT
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("model", "fixed")
    )
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    # the matrix, its bias, and what reads it: of one expert, where experts are stored apart
    assert 2 <= len(changed) <= 3
    for name in changed:
        ratio = (after[name] / before[name]).nan_to_num(1.0)
        assert ratio.log2().abs().max() >= 3
        assert torch.equal(ratio.log2(), ratio.log2().round())


WRITE_INTO_THE_STREAM = (
    "embed_tokens.weight",
    "o_proj.weight",
    "out_proj.weight",
    "experts.down_proj",
    "shared_expert.down_proj.weight",
)


def stream_planted(folder: Path) -> Path:
    """A Qwen3-Next with a residual stream that is too large.

    All norms have one epsilon, the gated one too, whose input is not the stream.
    """
    model: Any = planted_model(FUSED["Qwen3-Next", "one expert"], power=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(WRITE_INTO_THE_STREAM):
                parameter.mul_(2.0**18)
    return save_checkpoint(model, folder, tokenizer=True)


@pytest.mark.parametrize("is_measured", [True, False])
def test_an_epsilon_shared_with_a_gated_norm_is_left_alone(
    is_measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_measured:  # the epsilon is scaled, the proof refuses that, and leaving it is tried
        monkeypatch.setattr(PeakWitness, "_record_share", lambda *_: None)
    outcome = fix(
        str(stream_planted(tmp_path / "model")),
        tmp_path / "fixed",
        request=FixRequest(),
        observe=lambda _: None,
    )
    assert (outcome.remedy, outcome.holds, outcome.settings) == (Remedy.RESCALING, True, ())
    assert outcome.proof is not None
    (reference,) = (
        run
        for run in outcome.proof.runs
        if run.checkpoint == "fixed" and run.dtype is Dtype.FLOAT32
    )
    assert (reference.kl_divergence_mean or 0.0) < 1e-9
    assert {run.dtype for run in outcome.proof.runs if run.checkpoint == "fixed"} == set(Dtype)
