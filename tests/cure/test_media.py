"""Models that take images or sounds: all that writes into the stream is scaled, and proved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from precheck.checkpoint.source import open_checkpoint
from precheck.cure.fix import FixRequest, fix
from precheck.cure.media.accepted import content_inputs, unfed
from precheck.cure.media.gather import Media, find_media
from precheck.cure.notes import media_notes, verdict_notes
from precheck.records.outcomes.fix import Exactness, Remedy
from tests.cure.media_models import MODELS, planted
from tests.gallery.diagnoses import built
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.outcomes.fix import Fix


def fixed(folder: Path, output: Path) -> Fix:
    return fix(str(folder), output, request=FixRequest(), observe=lambda _: None)


def media_of(folder: Path) -> Media:
    return find_media(open_checkpoint(str(folder), observe=lambda _: None))


def answers(name: str, folder: Path, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits in float32, by transformers alone."""
    load: Any = getattr(transformers, MODELS[name].class_name).from_pretrained
    model = load(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_what_images_write_is_scaled_too(name: str, tmp_path: Path) -> None:
    folder = planted(name, tmp_path / "model")
    outcome = fixed(folder, tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    proof = outcome.proof
    assert proof is not None
    assert {run.medium for run in proof.runs} >= {"text", "image"}
    before, after = (load_file(each / "model.safetensors") for each in (folder, tmp_path / "fixed"))
    projector = MODELS[name].projector
    (stored,) = (each for each in before if projector.removeprefix("model.") in each)
    assert not torch.equal(before[stored], after[stored])
    assert any("in the proof are synthetic" in note for note in outcome.notes)
    # other pixels than those of the proof, by transformers alone
    batch = media_of(folder).choosing[0]
    inputs = {**batch.media, "input_ids": batch.input_ids}
    inputs = {k: v.flip(-1) if v.is_floating_point() else v for k, v in inputs.items()}
    same = answers(name, folder, inputs)
    torch.testing.assert_close(answers(name, tmp_path / "fixed", inputs), same, rtol=0, atol=1e-3)
    if proof.exactness is Exactness.EXACT:
        assert torch.equal(answers(name, tmp_path / "fixed", inputs), same)


def test_what_could_not_be_fed_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precheck.cure.media.synthetic.arrays", lambda *_, **__: iter(()))
    outcome = fixed(planted("LLaVA", tmp_path / "model"), tmp_path / "fixed")
    assert (outcome.remedy, outcome.holds) == (Remedy.NONE, False)
    assert outcome.sentence == "it takes images, but a fix could be proved only on text"
    assert any("no processor" in reason for reason in outcome.reasons)
    assert not (tmp_path / "fixed").exists()


def test_a_processor_that_does_not_load_is_named_without_the_folder(tmp_path: Path) -> None:
    folder = built("qwen2-vl", tmp_path / "model", is_planted=False)
    (folder / "processor_config.json").write_text("{")
    media = media_of(folder)
    assert set(media.synthetic) == {"image", "video"}
    assert {batch.probes[0].kind for batch in media.proving} == {"image", "video"}
    (note,) = media_notes(media)
    assert "the processor cannot be loaded" in note
    assert str(tmp_path) not in note


def test_a_verdict_speaks_for_what_was_tried() -> None:
    assert verdict_notes(Media(synthetic=("image",)), is_of_report=False) == ()
    assert verdict_notes(Media(synthetic=("image",)), is_of_report=True) == (
        "this does not cover images, which were not tried",
    )
    assert verdict_notes(Media(unproved=("sound",)), is_of_report=False) == (
        "this does not cover sounds, which were not tried",
    )
    (note,) = media_notes(Media(alike=("video",)))
    assert note == "videos were not tried: they use the same parameters as what was"


def test_with_a_processor_the_proof_has_other_images(tmp_path: Path) -> None:
    folder = built("qwen2-vl", tmp_path / "model", is_planted=False)
    media = media_of(folder)
    names = {probe.name for batch in media.proving for probe in batch.probes}
    assert {"held_out_168x140", "held_out_336x448"} <= names
    assert media.synthetic == ("video",)  # its processor makes no videos here
    assert media.unproved == ()


def test_a_text_model_is_given_text(tmp_path: Path) -> None:
    media = media_of(save_checkpoint(tiny("llama"), tmp_path / "model", tokenizer=False))
    assert (media.proving, media.choosing, media.unproved, media.alike) == ((), (), (), ())


def test_states_of_another_encoder_need_a_cross_attention(tmp_path: Path) -> None:
    """Every GPT-2 accepts them; only one with a cross-attention reads them."""
    plain = save_checkpoint(tiny("gpt2"), tmp_path / "plain", tokenizer=False)
    assert media_of(plain).unproved == ()
    config = tiny("gpt2").config
    config.add_cross_attention = True
    crossed = transformers.AutoModelForCausalLM.from_config(config)
    crossed.save_pretrained(tmp_path / "crossed")
    assert media_of(tmp_path / "crossed").unproved == ("state",)


def test_arguments_that_only_say_where_or_how_large_hold_no_content() -> None:
    accepts = ("input_ids", "pixel_values", "image_sizes", "image_grid_thw", "inputs_embeds")
    assert content_inputs(accepts) == ("pixel_values",)
    assert unfed((*accepts, "pixel_values_videos"), {"pixel_values"}) == ("video",)
    assert unfed(("input_features", "feature_attention_mask"), ()) == ("sound",)
