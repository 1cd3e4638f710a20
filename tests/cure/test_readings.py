"""Checkpoints that store both copies of tied parameters: every reader gets the same model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from precheck.cure.fix import FixRequest, fix
from precheck.measure.models.ties import declared_ties
from precheck.records.outcomes.fix import Exactness, Remedy
from tests.cure.media_models import media_model
from tests.cure.survey import planted
from tests.shell import change_weights
from tests.tiny_models import save_checkpoint, tiny, tiny_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.outcomes.fix import Fix

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its residual stream leaves float16; the head is the embedding, and is not stored."""
    return planted("Qwen2, tied", "residual", tmp_path_factory.mktemp("tied") / "model")


def with_copy(tied: Path, folder: Path, *, factor: float = 1.0) -> Path:
    """The same checkpoint with a head of its own in the file."""
    tensors = load_file(tied / "model.safetensors")
    tensors[HEAD] = factor * tensors[EMBEDDING]
    folder.mkdir()
    for file in tied.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def fixed(folder: Path, output: Path) -> Fix:
    return fix(str(folder), output, request=FixRequest(), observe=lambda _: None)


def logits(folder: Path, *, without: str | None = None) -> torch.Tensor:
    """By transformers alone; as the config says where the copy is left out."""
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(without or "", None)
    config = transformers.AutoConfig.from_pretrained(folder)
    load: Any = transformers.Qwen2ForCausalLM.from_pretrained
    model = load(None, config=config, state_dict=tensors, dtype=torch.float32)
    with torch.no_grad():
        result: torch.Tensor = model(**tiny_inputs("qwen2")).logits
    return result


def test_both_copies_are_scaled_alike(tied: Path, tmp_path: Path) -> None:
    model = with_copy(tied, tmp_path / "model")
    outcome = fixed(model, tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert outcome.proof is not None
    assert outcome.proof.exactness is Exactness.EXACT
    written = load_file(tmp_path / "fixed/model.safetensors")
    assert torch.equal(written[EMBEDDING], written[HEAD])
    assert not torch.equal(written[EMBEDDING], load_file(model / "model.safetensors")[EMBEDDING])
    for without in (None, HEAD, EMBEDDING):
        assert torch.equal(
            logits(tmp_path / "fixed", without=without), logits(model, without=without)
        )


def test_copies_that_differ_are_proved_in_both_readings(tied: Path, tmp_path: Path) -> None:
    model = with_copy(tied, tmp_path / "model", factor=0.7)
    outcome = fixed(model, tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert outcome.proof is not None
    assert {run.is_tied for run in outcome.proof.runs} == {False, True}
    assert all(
        run.is_identical
        for run in outcome.proof.runs
        if run.checkpoint == "fixed" and run.dtype.is_reference
    )
    for without in (None, HEAD):
        assert torch.equal(
            logits(tmp_path / "fixed", without=without), logits(model, without=without)
        )


def test_copies_that_are_no_longer_the_same_are_an_objection(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers loads two parameters then, and answers as before."""
    monkeypatch.setattr("precheck.cure.scales.traced_checkpoint.tie", lambda *_: None)
    model = with_copy(tied, tmp_path / "model")
    outcome = fixed(model, tmp_path / "fixed")
    assert outcome.remedy is not Remedy.RESCALING
    assert any(
        reason == f"the config ties {HEAD} to {EMBEDDING}, but their scales differ"
        for reason in outcome.reasons
    )
    assert not (tmp_path / "fixed/model.safetensors").exists()


def test_an_encoder_and_a_decoder_keep_one_embedding(tmp_path: Path) -> None:
    """T5 as older libraries stored it: four copies of one matrix."""
    model = tiny("t5")
    with torch.no_grad():
        model.shared.weight[:, 0] = 60_000.0
        for name, parameter in model.named_parameters():
            if name.endswith("final_layer_norm.weight"):
                parameter[0] = 0.0
    folder = save_checkpoint(model, tmp_path / "model", tokenizer=True)
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    change_weights(
        folder, lambda each: each.update({name: each["shared.weight"].clone() for name in copies})
    )
    outcome = fixed(folder, tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    written = load_file(tmp_path / "fixed/model.safetensors")
    assert not torch.equal(
        written["shared.weight"], load_file(folder / "model.safetensors")["shared.weight"]
    )
    assert all(torch.equal(written[name], written["shared.weight"]) for name in copies)


def test_a_tie_may_be_said_of_the_text_model_alone() -> None:
    """Engines ask the language model's config, transformers that of the whole."""
    model = media_model("Qwen2-VL")
    model.config.tie_word_embeddings = False
    model.config.text_config.tie_word_embeddings = True
    tied = declared_ties(model)
    assert tied == {HEAD: "model.language_model.embed_tokens.weight"}
    assert model.config.tie_word_embeddings is False
    model.config.text_config.tie_word_embeddings = False
    assert declared_ties(model) == {}


def test_without_a_tie_the_head_is_free(tied: Path, tmp_path: Path) -> None:
    model = with_copy(tied, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    outcome = fixed(model, tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    written = load_file(tmp_path / "fixed/model.safetensors")
    assert not torch.equal(written[EMBEDDING], written[HEAD])
    assert torch.equal(logits(tmp_path / "fixed"), logits(model))
