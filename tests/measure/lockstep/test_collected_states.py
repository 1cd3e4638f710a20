"""Models that collect the hidden states of their layers, and go on from some of them."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from precheck import scan
from precheck.checkpoint import gallery
from precheck.measure.models.skeleton import Skeleton
from precheck.records.finding import Verdict
from tests.gallery.diagnoses import check_silent
from tests.measure.scans import run_of
from tests.shell import change_config
from tests.tiny_models import BOS, EOS, PAD, VOCAB_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.report import Report

ONCE: dict[str, Any] = {
    "dtypes": ["float16"],
    "attn_implementations": ["sdpa"],
    "quick": True,
}


def llava(folder: Path, layer: int | list[int], *, planted: bool) -> None:
    """LLaVA with a tower of six layers; planted, a product in layer 1 leaves float16."""
    plain = tiny_tokenizer()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token=plain.pad_token,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        chat_template=plain.chat_template,
        model_specific_special_tokens={"image_token": "<image>"},
    )
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=VOCAB_SIZE + 8,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        ),
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=6,
            num_attention_heads=2,
            image_size=56,
            patch_size=14,
            projection_dim=32,
        ),
        image_token_index=VOCAB_SIZE,
        vision_feature_layer=layer,
    )
    torch.manual_seed(0)
    model: Any = transformers.LlavaForConditionalGeneration(config)
    if planted:
        broken = model.model.vision_tower.encoder.layers[1]
        with torch.no_grad():
            broken.layer_norm2.bias.fill_(100)
            broken.mlp.fc1.weight.abs_().mul_(5e4)
            broken.mlp.fc2.weight.mul_(1e-4)
    model.to(torch.bfloat16).save_pretrained(folder)
    transformers.LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(folder)


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("layer", [-1, -2, [-2, -1], [1, 4]])
def test_a_tower_that_overflows_early_is_named_whatever_layers_are_read(
    tmp_path: Path, layer: int | list[int], *, resident: bool
) -> None:
    llava(tmp_path, layer, planted=True)
    report = scan(tmp_path, resident=resident, **ONCE)
    run = run_of(report, "float16", "sdpa")
    assert run.verdict is Verdict.OVERFLOW
    assert run.first_overflow is not None
    assert run.first_overflow.module.endswith("vision_tower.encoder.layers.1.mlp.fc1")


def test_an_overflow_behind_the_layer_that_is_read_reaches_nothing(tmp_path: Path) -> None:
    llava(tmp_path, 1, planted=True)
    assert run_of(scan(tmp_path, **ONCE), "float16", "sdpa").verdict is Verdict.ABSORBED


@pytest.mark.parametrize("layer", [-2, [-2, -1]])
def test_the_same_tower_without_the_fault_is_silent(tmp_path: Path, layer: int | list[int]) -> None:
    llava(tmp_path, layer, planted=False)
    check_silent(scan(tmp_path, **ONCE))


@pytest.mark.parametrize("demo", ["qwen2-eager", "whisper-clamp"])
def test_looking_twice_at_a_layer_collects_its_states_once(
    demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(gallery.saved(demo), tmp_path / "model")
    plain = scan(tmp_path / "model", quick=True)
    change_config(tmp_path / "model", output_hidden_states=True)
    collected: dict[str, set[int]] = {}
    forward = Skeleton.forward

    def recording(skeleton: Skeleton, batch: Any, **named: Any) -> Any:
        output = forward(skeleton, batch, **named)
        for name, states in output.items():
            if name.endswith("hidden_states") and isinstance(states, tuple):
                collected.setdefault(name, set()).add(len(states))
        return output

    monkeypatch.setattr(Skeleton, "forward", recording)
    report = scan(tmp_path / "model", quick=True)
    assert collected
    assert all(len(lengths) == 1 for lengths in collected.values()), collected
    assert _verdicts(report) == _verdicts(plain)
    assert any(run.overflows for run in report.runs)  # so that some layer was called again


def _verdicts(report: Report) -> list[Verdict]:
    return [run.verdict for run in report.runs]
