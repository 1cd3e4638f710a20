"""What is read off a model before it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import precheck
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import UnsupportedModelError
from precheck.measure.models.empty import count_parameters
from precheck.measure.subject.subject import CheckpointSubject, LiveSubject
from precheck.measure.subject.token_inputs import max_context, vocab_size
from tests.tiny_models import architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path


def test_positions_that_count_from_behind_the_padding_shorten_the_context() -> None:
    config = transformers.RobertaConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=20,
        pad_token_id=1,
    )
    model = transformers.RobertaForMaskedLM(config).eval()
    longest = max_context(model)
    assert longest == 18
    with torch.no_grad():
        model(torch.full((1, longest), 5))
        with pytest.raises(RuntimeError, match="out of bounds"):
            model(torch.full((1, longest + 1), 5))


def test_rotary_positions_use_the_whole_context() -> None:
    model = tiny("qwen2")
    assert max_context(model) == model.config.max_position_embeddings


@pytest.mark.parametrize("name", architectures(["qwen2", "gpt2", "t5", "mixtral"]))
def test_parameters_are_counted_without_memory_for_them(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    checkpoint = open_checkpoint(
        str(save_checkpoint(model, tmp_path, tokenizer=False)), observe=lambda _: None
    )
    assert count_parameters(checkpoint) == sum(
        parameter.numel() for parameter in model.parameters()
    )


def test_a_model_of_sound_that_writes_no_text_is_refused() -> None:
    config = transformers.Wav2Vec2Config(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8,),
        conv_stride=(2,),
        conv_kernel=(3,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    with pytest.raises(UnsupportedModelError, match="input_values"):
        vocab_size(transformers.Wav2Vec2Model(config))


def test_headers_are_kept_from_when_the_checkpoint_was_opened(tmp_path: Path) -> None:
    model = tiny("qwen2").bfloat16()
    save_checkpoint(model, tmp_path, tokenizer=False)
    file = tmp_path / "model.safetensors"
    size = file.stat().st_size
    subject = CheckpointSubject(open_checkpoint(str(tmp_path), observe=lambda _: None))
    file.unlink()
    stored = sum(parameter.numel() for parameter in model.parameters())
    assert subject.tensor_dtypes == {"bfloat16": stored}
    assert subject.stored_bytes == size
    assert subject.declared_dtype == "bfloat16"


def test_a_checkpoint_and_its_live_module_answer_alike(tmp_path: Path) -> None:
    model = tiny("qwen2").half()
    save_checkpoint(model, tmp_path, tokenizer=False)
    saved = CheckpointSubject(open_checkpoint(str(tmp_path), observe=lambda _: None))
    live = LiveSubject(model)
    assert live.name == "Qwen2ForCausalLM"
    assert saved.name == str(tmp_path)
    for question in ("declared_dtype", "revision", "quantization", "may_add_up_in_float16"):
        assert getattr(live, question) == getattr(saved, question)
    assert live.tensor_dtypes == saved.tensor_dtypes
    assert live.stored_bytes == 0


@pytest.mark.parametrize("absent", ["all", "one"])
def test_a_module_without_values_is_refused(absent: str) -> None:
    model: Any = tiny("qwen2", num_layers=2)
    part = model if absent == "all" else model.get_submodule("model.layers.1.mlp.up_proj")
    part.to("meta")
    with pytest.raises(UnsupportedModelError, match="have no values") as refused:
        precheck.scan(model, quick=True)
    assert "load its weights" in str(refused.value.hint)


def test_auto_is_the_dtype_of_the_checkpoint(tmp_path: Path) -> None:
    half = save_checkpoint(tiny("llama").half(), tmp_path / "half", tokenizer=True)
    report = precheck.scan(half, dtypes="auto", attn_implementations=["sdpa", "eager"], quick=True)
    assert {run.name for run in report.runs} == {
        f"{dtype} + {attn}" for dtype in ("float32", "float16") for attn in ("sdpa", "eager")
    }
    both = precheck.scan(half, dtypes=["auto", "bfloat16"], attn_implementations="sdpa", quick=True)
    assert {str(run.dtype) for run in both.runs} == {"float32", "float16", "bfloat16"}
