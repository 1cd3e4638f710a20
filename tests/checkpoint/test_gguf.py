"""GGUF files: the same tensors as transformers loads, and the same scan as of a checkpoint."""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch
import transformers.modeling_gguf_pytorch_utils as loader
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import precheck
from precheck.checkpoint.gguf.header import read_header
from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import CheckpointCorruptError, ExitCode
from tests.gguf_files import Kind, always, model_of, write_gguf
from tests.tiny_models import save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from precheck.records.report import Report
    from tests.shell import Shell


pytestmark = pytest.mark.usefixtures("untraced")


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers shows a bar for the tensors of a GGUF file, and a bar starts a thread."""
    monkeypatch.setattr(loader, "tqdm", lambda each, **_: each)


def loaded(file: Path) -> PreTrainedModel:
    """What plain transformers loads, float32."""
    with quiet_transformers():
        is_pair = AutoConfig.from_pretrained(file.parent, gguf_file=file.name).is_encoder_decoder
        loads: Any = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
        model: PreTrainedModel = loads.from_pretrained(file.parent, gguf_file=file.name)
    return model


def decoded(file: Path, folder: Path, *, tokenizer: bool) -> Path:
    """The same as an ordinary checkpoint in float32."""
    model = loaded(file)
    if hasattr(model.config, "quantization_config"):  # its mark of where it comes from
        del model.config.quantization_config
    state: Any = model
    state.hf_quantizer, state.is_quantized = None, False
    model.save_pretrained(folder)
    if tokenizer:
        own: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        own.save_pretrained(folder)
    return folder


def compared(report: Report) -> dict[str, Any]:
    """What has to be equal in two scans of the same numbers."""
    whole = report.to_dict()
    kept = ("runs", "headroom", "probes", "coverage")
    audit = {**whole["checkpoint"], "size_bytes": None, "scales": None, "stored_types": None}
    return {**{name: whole[name] for name in kept}, "checkpoint": audit}


TIED = ("lm_head", "encoder.embed_tokens", "decoder.embed_tokens")


def mixed(name: str) -> Kind:
    """Blocks of 32 in some matrices, plain numbers in others."""
    kinds = (Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.F16, Kind.BF16, Kind.F32)
    return kinds[sum(name.encode()) % len(kinds)]


ARCHITECTURES = (
    *("llama", "mistral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gemma2", "gemma3", "gemma4"),
    *("phi3", "minimax_m2", "nemotron", "stablelm", "starcoder2", "falcon", "bloom", "gpt2"),
    *("mamba", "t5", "umt5"),
)
"""All that transformers loads by its tables, but those that it cannot fill (gpt-oss) or build."""


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_the_one_that_transformers_loads(name: str, tmp_path: Path) -> None:
    file = write_gguf(model_of(name), tmp_path / "model.gguf", kind_of=mixed)
    expected = loaded(file).state_dict()
    checkpoint = open_checkpoint(str(file), observe=print)
    with checkpoint.open_weights() as weights:
        tied = set(expected) - set(weights)
        assert tied <= {f"{part}.weight" for part in TIED}
        assert set(weights) == set(expected) - tied
        for tensor_name, tensor in weights.items():
            assert torch.equal(tensor.float(), expected[tensor_name]), tensor_name


@pytest.mark.parametrize(
    ("architecture", "says"),
    [
        ("gpt-oss", "does not read 6 parameters of gpt-oss from GGUF files: "),
        ("deci", "does not know the model_type 'deci'"),
        ("command-r", "architecture command-r is not supported"),
        ("lfm2", "GGUF files of lfm2 are not decoded here"),
        ("qwen35", "GGUF files of qwen35 are not decoded here"),
    ],
)
def test_what_transformers_does_not_load_is_refused(
    architecture: str, says: str, shell: Shell
) -> None:
    file = shell.folder / "a.gguf"
    writer = gguf.GGUFWriter(file, architecture)
    for key, value in {
        "block_count": 2,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": 320,
        "expert_count": 4,
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    # as large as the model: a config of another size would be refused for that
    writer.add_tensor("token_embd.weight", np.zeros((320, 4096), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ended = shell(file, "--static")
    assert ended.code == ExitCode.INCOMPLETE
    assert says in ended.error


def test_a_scan_is_that_of_the_checkpoint_it_was_made_of(tmp_path: Path) -> None:
    model = model_of("llama")
    folder = save_checkpoint(model, tmp_path / "checkpoint", tokenizer=True)
    file = write_gguf(model, tmp_path / "model.gguf")
    of_file, of_folder = (
        precheck.scan(source, quick=True, prompts=[[5, 6, 7, 8], [9, 10, 11]])
        for source in (file, folder)
    )
    assert of_file.complete
    assert compared(of_file)["runs"] == compared(of_folder)["runs"]
    assert compared(of_file)["headroom"] == compared(of_folder)["headroom"]


@pytest.mark.parametrize(
    "name",
    [
        *("llama", "gemma3", "gpt2", "bloom", "falcon", "mamba", "nemotron", "qwen2_moe"),
        *("stablelm", "starcoder2", "t5"),
    ],
)
def test_a_scan_is_that_of_the_decoded_checkpoint(name: str, tmp_path: Path) -> None:
    has_text = name in {"llama", "gpt2", "starcoder2"}  # others have no byte-level BPE
    file = write_gguf(
        model_of(name), tmp_path / "a.gguf", kind_of=lambda _: Kind.Q4_0, tokenizer=has_text
    )
    folder = decoded(file, tmp_path / "decoded", tokenizer=has_text)
    of_file, of_folder = (precheck.scan(source, quick=True) for source in (file, folder))
    assert of_file.complete
    assert of_file.model.tensor_dtypes["q4_0"] > of_file.model.tensor_dtypes["float32"]
    first, second = compared(of_file), compared(of_folder)
    if not has_text:
        (not_run,) = first["coverage"].pop("probes_not_run")
        assert not_run == "text probes (no tokenizer in the file)"
        del second["coverage"]["probes_not_run"]
    assert first == second


# The audit


def with_faulty_block(file: Path, name: str, scale: float) -> Path:
    """The file, the first scale of a tensor replaced."""
    (tensor,) = (each for each in read_header(file).tensors if each.name == name)
    content = bytearray(file.read_bytes())
    content[tensor.span.start : tensor.span.start + 2] = struct.pack("<e", scale)
    file.write_bytes(content)
    return file


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_block_whose_scale_left_float16_is_named(scale: float, tmp_path: Path) -> None:
    name = "blk.1.ffn_down.weight"
    healthy = write_gguf(model_of("qwen2"), tmp_path / "a.gguf", kind_of=lambda _: Kind.Q8_0)
    assert not [
        finding
        for finding in precheck.scan(healthy, static=True, full=True).findings
        if finding.severity == "error"
    ]
    faulty = with_faulty_block(healthy, name, scale)
    report = precheck.scan(faulty, static=True, full=True)
    (fault,) = report.checkpoint.scales.faults
    assert (fault.name, fault.num_faulty, fault.num_scales) == (name, 1, 64 * 96 // 32)
    (finding,) = (one for one in report.findings if one.code == "PC610")
    assert name in finding.message
    assert "--check-tensors" in finding.advice
    assert "PC504" not in {one.code for one in report.findings}  # it has a cause


def test_small_tensors_alone_tell_nothing_wrong_of_a_healthy_file(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf", kind_of=lambda _: Kind.Q4_0)
    report = precheck.scan(file, static=True)
    assert {one.severity for one in report.findings} <= {"note"}
    assert report.checkpoint.small is not None


def test_the_types_of_tensors_are_counted(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf", kind_of=lambda _: Kind.Q4_0)
    report = precheck.scan(file, static=True, full=True)
    blocks, plain = report.checkpoint.stored_types
    assert (blocks.name, plain.name) == ("q4_0", "float32")
    assert blocks.num_bytes == blocks.num_elements * 18 // 32
    assert plain.num_bytes == 4 * plain.num_elements
    assert plain.num_tensors == 2 * 2 + 1
    assert blocks.num_elements + plain.num_elements == report.model.num_parameters


def test_factors_of_rope_that_transformers_leaves_out_are_named(tmp_path: Path) -> None:
    factors = torch.ones(8)
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf", extra={"rope_freqs.weight": factors})
    (finding,) = (
        one for one in precheck.scan(file, static=True, full=True).findings if one.code == "PC505"
    )
    assert "rope_freqs.weight" in finding.message
    assert "RoPE" in finding.advice


# One file, read in every way


def test_weights_in_memory_give_the_same_runs(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf", kind_of=mixed)
    streamed, resident = (
        precheck.scan(file, dtypes="float16", prompts=[[5, 6, 7]], resident=resident)
        for resident in (False, True)
    )
    assert compared(streamed)["runs"] == compared(resident)["runs"]


def test_a_file_that_changes_after_its_header_was_read_is_noticed(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf")
    checkpoint = open_checkpoint(str(file), observe=print)
    file.write_bytes(file.read_bytes()[:-4096])
    with pytest.raises(CheckpointCorruptError, match="changed"):
        checkpoint.open_weights()


def test_layers_that_are_missing_are_an_error(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf")
    key = b"llama.block_count"
    content = file.read_bytes()
    place = content.index(key) + len(key) + 4
    file.write_bytes(content[:place] + struct.pack("<I", 3) + content[place + 4 :])
    report = precheck.scan(file, static=True, full=True)
    (finding,) = (one for one in report.findings if one.code == "PC501")
    assert finding.severity == "error"
    assert "model.layers.2" in finding.message


def test_a_cut_file_is_exit_code_3(shell: Shell) -> None:
    file = write_gguf(model_of("llama"), shell.folder / "a.gguf")
    file.write_bytes(file.read_bytes()[:100_000])
    ended = shell(file)
    assert ended.code == ExitCode.INCOMPLETE
    assert "lies in bytes" in ended.error


def test_advice_names_the_file_and_the_engines_that_take_it(tmp_path: Path) -> None:
    file = write_gguf(model_of("llama"), tmp_path / "a.gguf", kind_of=always(Kind.Q8_0))
    report = precheck.scan(file, dtypes="float16", prompts=[[5, 6, 7]], gpus=["T4"])
    (advice,) = report.recommendations
    assert 'gguf_file="a.gguf"' in advice.snippets["transformers"]
    engines = {each.engine: each for each in advice.engines}
    assert str(engines["llama.cpp"].command).startswith("llama-server -m ")
    assert engines["llama.cpp"].default_dtype == "float32"
    assert engines["vLLM"].command is None
    assert "GGUF" in engines["vLLM"].default
