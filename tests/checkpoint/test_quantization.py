"""Quantised checkpoints: decoded as other libraries do, refused where they make no sense."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.utils.quantization_config import Mxfp4Config

import precheck
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.gallery import GALLERY
from precheck.checkpoint.packed import unpacked
from precheck.checkpoint.quantization import Quantization, read_quantization
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import CheckpointCorruptError, UnsupportedModelError
from precheck.records.finding import Verdict
from tests.checkpoint.packed_by_others import FILE, GROUP_SIZE, NUM_INPUTS, NUM_OUTPUTS
from tests.tiny_models import BOS, EOS, PAD, VOCAB_SIZE, save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PACKED_BY_OTHERS = load_file(FILE)
CASES = sorted({name.rpartition(".")[0] for name in PACKED_BY_OTHERS})
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP_SIZE, "desc_act": False}


def quantization_of(case: str) -> Quantization:
    """What the config of such a checkpoint would say."""
    if case == "awq":
        settings: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": GROUP_SIZE}
    else:
        layout, bits, order = case.split("-")
        settings = {
            **GPTQ,
            "bits": int(bits),
            "checkpoint_format": layout,
            "desc_act": order == "desc_act",
        }
    found = read_quantization({"quantization_config": settings}, where="here")
    assert found is not None
    return found


def stored_case(case: str, folder: Path) -> Path:
    """The packed tensors of one case, as a checkpoint stores them."""
    parts = {
        f"linear.{name.rpartition('.')[2]}": tensor
        for name, tensor in PACKED_BY_OTHERS.items()
        if name.startswith(f"{case}.") and not name.endswith("decoded")
    }
    file = folder / "model.safetensors"
    save_file(parts, file)
    return file


@pytest.mark.parametrize("case", CASES)
def test_decodes_what_other_libraries_decode(case: str, tmp_path: Path) -> None:
    """auto_gptq, gptqmodel and AutoAWQ's unpacking give float16; here every digit is kept."""
    with DecodedWeights([stored_case(case, tmp_path)], quantization_of(case)) as weights:
        assert list(weights) == ["linear.weight"]
        assert weights.shape("linear.weight") == (NUM_OUTPUTS, NUM_INPUTS)
        decoded = weights["linear.weight"]
    assert decoded.dtype is torch.float32
    assert torch.equal(decoded.half(), PACKED_BY_OTHERS[f"{case}.decoded"].half())


@pytest.mark.parametrize("case", ["awq", "gptq-3-desc_act", "gptq-4-plain"])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(7, 33), slice(60, 64), [3, 1, 63]])
def test_rows_are_those_of_the_whole(case: str, rows: Any, tmp_path: Path) -> None:
    with DecodedWeights([stored_case(case, tmp_path)], quantization_of(case)) as weights:
        whole = weights["linear.weight"]
        buffer = torch.empty(weights.nbytes("linear.weight"), dtype=torch.uint8)
        part = weights.read_rows_into("linear.weight", rows, buffer)
        assert torch.equal(part, whole[rows])
        assert weights.bytes_read > 0


@given(
    st.sampled_from([2, 3, 4, 8]).flatmap(
        lambda bits: st.tuples(
            st.just(bits), st.lists(st.integers(0, 2**bits - 1), min_size=32, max_size=96)
        )
    )
)
def test_unpacking_undoes_packing(drawn: tuple[int, list[int]]) -> None:
    """Packing is one long number in base 2, cut into words."""
    bits, integers = drawn
    number = sum(each << (bits * index) for index, each in enumerate(integers))
    num_words = -(-len(integers) * bits // 32)
    words = [(number >> (32 * index)) & 0xFFFFFFFF for index in range(num_words)]
    packed = torch.tensor(words).to(torch.int32).unsqueeze(1)
    found = unpacked(packed, bits, count=len(integers))
    assert found.dtype is torch.uint8
    assert found[:, 0].tolist() == integers


@pytest.mark.parametrize("shape", [(64, 96), (40, 72)])
def test_fp8_is_decoded_as_transformers_does(shape: tuple[int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(shape) * 100).to(torch.float8_e4m3fn)
    factors = torch.rand(shape[0] // 8, shape[1] // 8) + 0.5
    file = tmp_path / "model.safetensors"
    save_file({"linear.weight": weight, "linear.weight_scale_inv": factors}, file)
    found = Quantization(method="fp8", block_size=(8, 8))
    with DecodedWeights([file], found) as weights:
        decoded = weights["linear.weight"]
    theirs = Fp8Dequantize(None)._dequantize_one(weight, factors, torch.float32)  # noqa: SLF001
    assert torch.equal(decoded, theirs)


def test_blocks_of_fp8_may_overlap_the_edge(tmp_path: Path) -> None:
    weight = torch.ones(10, 12).to(torch.float8_e4m3fn)
    factors = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    file = tmp_path / "model.safetensors"
    save_file({"linear.weight": weight, "linear.weight_scale_inv": factors}, file)
    with DecodedWeights([file], Quantization(method="fp8", block_size=(8, 8))) as weights:
        decoded = weights["linear.weight"]
    assert [float(decoded[i, j]) for i, j in ((0, 0), (7, 11), (9, 7), (9, 8))] == [1, 2, 3, 4]


def _saved(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The built-in GPTQ model with something about it changed."""
    GALLERY["qwen2.5-gptq"].build(folder, is_planted=False)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    change(config["quantization_config"], tensors)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


FIRST = "model.layers.0.mlp.up_proj"


def _group_size(size: int) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(settings: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        settings["group_size"] = size

    return change


def _bits(settings: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
    settings["bits"] = 8


def _no_scales(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{FIRST}.scales"]


def _no_order(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    settings["desc_act"] = True
    del tensors[f"{FIRST}.g_idx"]


def _another_order(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.g_idx"] = tensors[f"{FIRST}.g_idx"].flip(0).contiguous()


def _no_such_group(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    settings["desc_act"] = True
    tensors[f"{FIRST}.g_idx"] = tensors[f"{FIRST}.g_idx"] + 1


def _short_zeros(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{FIRST}.qzeros"] = tensors[f"{FIRST}.qzeros"][:1].contiguous()


def _plain(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for name in [tensor for tensor in tensors if tensor.endswith(("qweight", "qzeros", "scales"))]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_group_size(48), "group_size 48 does not divide the \\d+ inputs"),
        (_group_size(32), "scales is"),
        (_group_size(-7), "does not divide"),
        (_bits, "is .* but bits and group_size of the config imply"),
        (_no_scales, f"{FIRST}.scales is missing"),
        (_no_order, f"{FIRST}.g_idx is missing, although desc_act is true"),
        (_another_order, f"{FIRST}.g_idx is not in order, although desc_act is false"),
        (_no_such_group, f"{FIRST}.g_idx refers to group 2 of 2"),
        (_short_zeros, f"{FIRST}.qzeros is"),
        (_plain, "no tensor is packed as gptq does"),
    ],
)
def test_metadata_that_contradicts_the_tensors_is_named(
    change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None],
    message: str,
    tmp_path: Path,
) -> None:
    folder = _saved(tmp_path, change)
    with pytest.raises(CheckpointCorruptError, match=message):
        precheck.scan(str(folder), dtypes=["float16"], attn_implementations=["sdpa"], quick=True)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"quant_method": "magic"}, UnsupportedModelError, "unknown quantisation.*'magic'"),
        ({"bits": 4}, UnsupportedModelError, "an unnamed method"),
        ({**GPTQ, "bits": 5}, UnsupportedModelError, "GPTQ with 5 bits"),
        ({**GPTQ, "checkpoint_format": "marlin"}, UnsupportedModelError, "layout 'marlin'"),
        ({**GPTQ, "bits": "4"}, CheckpointCorruptError, "bits is '4'"),
        ({**GPTQ, "group_size": None}, CheckpointCorruptError, "group_size is None"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, UnsupportedModelError, "'gemv'"),
        (
            {"quant_method": "fp8", "weight_block_size": [0, 1]},
            CheckpointCorruptError,
            "weight_block_size",
        ),
    ],
)
def test_settings_that_nothing_decodes_are_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read_quantization({"quantization_config": settings}, where="here")


@pytest.mark.parametrize("method", ["compressed-tensors", "bitsandbytes"])
def test_a_format_whose_library_is_absent_is_refused_by_name(method: str, tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=False)
    config = json.loads((folder / "config.json").read_text())
    own: dict[str, Any] = {"bitsandbytes": {"load_in_4bit": True}}.get(method, {})
    config["quantization_config"] = {"quant_method": method, **own}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UnsupportedModelError, match=r"not installed: .*" + method.split("-", maxsplit=1)[0]
    ):
        precheck.scan(str(folder), quick=True)


def test_streamed_and_resident_decode_to_the_same_bits(tmp_path: Path) -> None:
    GALLERY["qwen2.5-gptq"].build(tmp_path)
    options: dict[str, Any] = {"dtypes": ["float16"], "attn_implementations": ["sdpa"]}
    streamed = precheck.scan(str(tmp_path), **options)
    resident = precheck.scan(str(tmp_path), resident=True, **options)
    assert streamed.runs == resident.runs
    assert streamed.checkpoint == resident.checkpoint


def test_a_quantised_model_is_the_plain_one_made_of_its_decoded_weights(tmp_path: Path) -> None:
    """The plain twin is written by hand, so nothing of the decoding is in it."""
    packed, plain = tmp_path / "packed", tmp_path / "plain"
    for each in (packed, plain):
        each.mkdir()
    GALLERY["qwen2.5-gptq"].build(packed)
    tensors = load_file(packed / "model.safetensors")
    config = json.loads((packed / "config.json").read_text())
    group_size = config.pop("quantization_config")["group_size"]
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "qweight":
            nibbles = torch.stack([(tensor >> (4 * i)) & 15 for i in range(8)], dim=1).flatten(0, 1)
            scales = tensors[f"{module}.scales"].float().repeat_interleave(group_size, dim=0)
            made[f"{module}.weight"] = ((nibbles - 8).float() * scales).T.contiguous()
        elif part not in {"qzeros", "scales", "g_idx"}:
            made[name] = tensor
    save_file(made, plain / "model.safetensors", metadata={"format": "pt"})
    (plain / "config.json").write_text(json.dumps(config))
    for file in packed.iterdir():
        if not (plain / file.name).exists():
            (plain / file.name).write_bytes(file.read_bytes())
    options: dict[str, Any] = {"accumulations": ["float32"]}
    assert precheck.scan(str(packed), **options).runs == precheck.scan(str(plain), **options).runs


def test_the_report_says_how_it_was_quantised(tmp_path: Path) -> None:
    GALLERY["qwen2.5-gptq"].build(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path), observe=lambda _: None)
    assert checkpoint.quantization is not None
    assert not hasattr(checkpoint.config, "quantization_config")
    report = precheck.scan(str(tmp_path), quick=True)
    assert report.model.quantization == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 64,
        "desc_act": False,
        "sym": True,
        "checkpoint_format": "gptq",
        "decoded_by": "precheck",
        "num_linears_without_bias": 5 * 4,
    }
    assert report.model.tensor_dtypes["int32"] > 0


def test_gpt_oss_is_decoded_here_and_streamed(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.GptOssForCausalLM(config)
    tensors: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, num_inputs, num_outputs = tensor.shape
            blocks = (experts, num_outputs, num_inputs // 32, 16)
            tensors[f"{name}_blocks"] = torch.randint(
                0, 256, blocks, dtype=torch.uint8, generator=generator
            )
            tensors[f"{name}_scales"] = torch.full(blocks[:3], 122, dtype=torch.uint8)
        else:
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model.config.quantization_config = {"quant_method": "mxfp4"}
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    report = precheck.scan(str(tmp_path), quick=True)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert report.model.quantization is not None
    assert report.model.quantization["decoded_by"] == "precheck"
    assert report.checkpoint.missing == ()
    assert report.runs == precheck.scan(str(tmp_path), quick=True, resident=True).runs
    theirs = transformers.GptOssForCausalLM.from_pretrained(
        tmp_path, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    with open_checkpoint(str(tmp_path), observe=lambda _: None).open_weights() as weights:
        for name, parameter in theirs.named_parameters():
            assert torch.equal(weights[name].to(torch.bfloat16), parameter), name
