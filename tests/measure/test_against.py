"""What other weights cost, against plain transformers and float64."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as loader
from transformers import AutoModelForCausalLM

from precheck.checkpoint.source import open_checkpoint
from precheck.errors import ExitCode, UsageError
from precheck.judge.comparison.cost import judged_cost
from precheck.measure.against import weigh
from precheck.measure.request import Request
from precheck.measure.subject.subject import CheckpointSubject
from precheck.records.outcomes.weights_cost import WeighedModel
from precheck.records.precision import Dtype
from precheck.render.screens.weights_cost import render_weights_cost
from tests.gguf_files import Kind, always, write_gguf
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.outcomes.weights_cost import WeightsCost
    from tests.shell import Shell

IDS = [[5, 6, 7, 8, 9, 10], [40, 41, 2, 3, 200, 17]]


def ignore(_: object) -> None:
    """Observe nothing."""


def opened(model: Path) -> CheckpointSubject:
    return CheckpointSubject(open_checkpoint(str(model), observe=ignore))


def cost_of(other: Path, reference: Path) -> WeightsCost:
    request = Request(dtypes=(Dtype.FLOAT32,), prompts=IDS, quick=True, accumulations=())
    return judged_cost(weigh(opened(reference), opened(other), request, observe=ignore))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    model = tiny("llama")
    save_checkpoint(model, folder / "original", tokenizer=True)
    for kind in (Kind.F32, Kind.Q8_0, Kind.Q4_0):
        write_gguf(model, folder / f"{kind.name}.gguf", kind_of=always(kind))
    return folder


def plain_outputs(model: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with torch.no_grad():
        output = model(input_ids=torch.tensor(IDS), output_hidden_states=True)
    return output.logits.double().log_softmax(-1), output.hidden_states


def test_its_figures_are_those_of_plain_transformers(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "tqdm", lambda each, **_: each)  # a bar starts a thread
    found = cost_of(models / "Q4_0.gguf", models / "original")
    expected, layers = plain_outputs(AutoModelForCausalLM.from_pretrained(models / "original"))
    scores, own_layers = plain_outputs(
        AutoModelForCausalLM.from_pretrained(models, gguf_file="Q4_0.gguf")
    )
    divergence = (expected.exp() * (expected - scores)).sum(-1)
    logits = found.run.logits
    assert logits is not None
    assert logits.kl_divergence_mean == pytest.approx(float(divergence.mean()), rel=1e-4)
    assert logits.kl_divergence_max == pytest.approx(float(divergence.max()), rel=1e-4)
    first = (own_layers[1] - layers[1]).double().norm(dim=-1) / layers[1].double().norm(dim=-1)
    assert found.run.layers[0].relative_error == pytest.approx(float(first.mean()), rel=1e-4)
    assert found.other.stored_as == ("q4_0", "float32")


def test_the_same_numbers_cost_nothing(models: Path) -> None:
    found = cost_of(models / "F32.gguf", models / "original")
    assert found.run.logits is not None
    assert found.run.logits.kl_divergence_max == 0
    assert {layer.relative_error for layer in found.run.layers} == {0}
    assert not found.too_much
    assert not found.retokenised


def test_another_model_is_refused(models: Path, tmp_path: Path) -> None:
    other = save_checkpoint(tiny("llama", num_layers=2), tmp_path / "other", tokenizer=False)
    with pytest.raises(UsageError, match="not two copies of one model"):
        cost_of(other, models / "original")


def test_the_command_says_what_it_costs(models: Path, shell: Shell) -> None:
    pair = (models / "original", models / "Q4_0.gguf")
    ended = shell(*pair, "--quick", command="diff")
    assert ended.code == 1
    assert "q4_0" in ended.out.splitlines()[0]
    assert "model.layers.2" in ended.out
    ended = shell(*pair, "--quick", "--quiet", "--format", "json", command="diff")
    assert json.loads(ended.out)["other"]["id"].endswith("Q4_0.gguf")
    assert "running both" not in ended.err
    assert shell("a.json", models, command="diff").code == ExitCode.USAGE


def test_text_of_a_file_is_shown_as_data(models: Path) -> None:
    found = cost_of(models / "Q8_0.gguf", models / "original")
    evil = WeighedModel(id="\x1b[2Ja\n\u202eb", stored_as=("q8_0",), size_bytes=1)
    shown = render_weights_cost(
        type(found)(reference=evil, other=evil, num_probes=1, num_tokens=1, run=found.run),
        width=80,
        colour=False,
    )
    assert "\x1b" not in shown
    assert "\u202e" not in shown
