"""What is told from small tensors, of a folder and of a repository whose weights stay there."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import precheck
from precheck.checkpoint.source import Access, open_checkpoint
from precheck.checkpoint.triage import small
from precheck.checkpoint.triage.small import find_small_parts
from precheck.errors import UsageError
from precheck.records.progress import Announcement, Step
from tests.hub_server import REPO, Content, Hub, Virtual, endpoint, folder_files, served
from tests.quantised import quantised
from tests.shell import change_config, change_weights
from tests.tiny_models import save_checkpoint, tiny, tiny_config, tiny_of

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.finding import Finding
    from precheck.records.report import Report

KEY_BIAS = "model.layers.0.self_attn.k_proj.bias"
UP = "model.layers.1.mlp.up_proj"


def found(report: Report) -> dict[str, Finding]:
    """Findings about the files and what follows from them, by code."""
    return {each.code: each for each in report.findings if each.code[2] in "56"}


def static(folder: Path, **options: Any) -> Report:
    report = precheck.scan(folder, static=True, **options)
    json.dumps(report.to_dict(), allow_nan=False)
    assert {each.confidence for each in report.findings} <= {"proved", "predicted", "documented"}
    return report


def fill(folder: Path, name: str, value: float) -> None:
    """Writes one number into all of a stored tensor."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].fill_(value)

    change_weights(folder, change)


@pytest.fixture
def qwen2(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("qwen2").bfloat16(), tmp_path / "qwen2", tokenizer=True)


def test_a_repository_tells_what_a_folder_does(
    qwen2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = static(qwen2)
    said: list[str] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Announcement):
            said.append(event.text)

    with served(folder_files(qwen2)) as hub, endpoint(hub, tmp_path / "cache", monkeypatch):
        report = static(REPO, observe=observe)  # type: ignore[arg-type]
    read = report.checkpoint.small
    assert read is not None
    assert (read.requests, read.received_bytes) == (len(hub.ranges), hub.bytes_sent["storage"])
    assert replace(read, requests=None, received_bytes=None) == local.checkpoint.small
    assert replace(report.checkpoint, small=None) == replace(local.checkpoint, small=None)
    assert replace(report.model, id="", revision=None) == replace(local.model, id="")
    assert report.key_values == local.key_values
    assert [each.code for each in report.findings] == [each.code for each in local.findings]
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert not list((tmp_path / "cache").rglob("tokenizer*"))
    assert any("stay there" in text for text in said)
    assert any(" in " in text and "request" in text for text in said)


def test_only_small_tensors_are_read(qwen2: Path) -> None:
    fill(qwen2, f"{UP}.weight", float("nan"))
    report = static(qwen2)
    assert found(report) == {}
    told = next(each for each in report.findings if each.code == "PC903")
    assert "16 small tensors of 39" in told.message
    assert "--static --full" in told.advice
    assert "PC504" in found(static(qwen2, full=True))


def test_ranges_of_norms_and_biases_are_in_the_report(qwen2: Path) -> None:
    fill(qwen2, "model.layers.1.input_layernorm.weight", -37.5)
    read = static(qwen2).checkpoint.small
    assert read is not None
    rows = {row.kind: row for row in read.vectors}
    norm = rows["model.layers.*.input_layernorm.weight"]
    assert (norm.abs_max, norm.largest) == (37.5, "model.layers.1.input_layernorm.weight")
    assert norm.num_tensors == 3
    assert norm.median_abs_max < 2


def plant_bias(tensors: dict[str, torch.Tensor]) -> None:
    tensors[KEY_BIAS].zero_()
    tensors[KEY_BIAS][-2:] = 430.0


def test_a_key_bias_predicts_what_an_fp8_cache_does(qwen2: Path) -> None:
    assert "PC601" not in found(static(qwen2))
    change_weights(qwen2, plant_bias)
    warning = found(static(qwen2))["PC601"]
    assert (warning.severity, warning.confidence) == ("warning", "predicted")
    assert (warning.module, warning.layer) == (KEY_BIAS, 0)
    assert "a usual size" in warning.message


def test_a_key_bias_before_a_norm_does_nothing(tmp_path: Path) -> None:
    config = tiny_config("qwen3")
    config.attention_bias = True
    model = tiny_of(config)
    with torch.no_grad():
        model.get_parameter(KEY_BIAS).fill_(400.0)
    folder = save_checkpoint(model, tmp_path / "qwen3", tokenizer=False)
    assert "PC601" not in found(static(folder))


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox"])
def test_keys_have_their_part_of_a_fused_bias(name: str, tmp_path: Path) -> None:
    """GPT-2's result is all queries, all keys, all values; GPT-NeoX's is that for each head."""
    model = tiny(name)
    bias = next(
        each
        for key, each in model.named_parameters()
        if key.endswith(("c_attn.bias", "value.bias"))
    )
    queries, keys, _ = bias.view(3, 4, 16) if name == "gpt2" else bias.view(4, 3, 16).movedim(1, 0)
    with torch.no_grad():
        bias.zero_()
        queries[1, -2:] = 430.0
    assert "PC601" not in found(static(save_checkpoint(model, tmp_path / "q", tokenizer=False)))
    with torch.no_grad():
        keys[1, -2:] = 430.0
    report = static(save_checkpoint(model, tmp_path / "k", tokenizer=False))
    assert "bias has a norm of 608 and elements up to 430" in found(report)["PC601"].message
    assert found(report)["PC601"].layer == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_named(qwen2: Path, value: float) -> None:
    name = "model.layers.2.post_attention_layernorm.weight"

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name][5] = value

    change_weights(qwen2, plant)
    assert found(static(qwen2))["PC504"].modules == (name,)


def tie(folder: Path, *, factor: float) -> None:
    """Ties the head in the config, and stores it too: the embedding times a factor."""
    change_config(folder, tie_word_embeddings=True)

    def store_both(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * factor

    change_weights(folder, store_both)


def test_a_tie_that_is_stored_twice_is_compared_in_some_rows(qwen2: Path) -> None:
    tie(qwen2, factor=1.0)
    healthy = static(qwen2)
    assert "PC513" not in found(healthy)
    assert "compared in 8 rows" in healthy.findings[-1].message
    tie(qwen2, factor=2.0)
    assert "lm_head.weight" in found(static(qwen2))["PC513"].modules


def test_names_and_shapes_are_told_from_headers(qwen2: Path) -> None:
    change_weights(qwen2, lambda tensors: tensors.update({f"{UP}.weight": torch.empty(0)}))
    assert "PC502" in found(static(qwen2))

    def compiled(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[f"_orig_mod.{name}"] = tensors.pop(name)

    change_weights(qwen2, compiled)
    assert "PC514" in found(static(qwen2))


def test_a_scale_that_is_missing_or_left_at_one_is_named(tmp_path: Path) -> None:
    def plant(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.mlp.down_proj.input_scale"]
        for layer in range(3):
            for part in "kv":
                tensors[f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale"] = torch.tensor(
                    1.0
                )

    folder = quantised(tmp_path / "planted", "modelopt-fp8", plant)
    assert {"PC613", "PC615"} <= found(static(folder)).keys()
    healthy = quantised(tmp_path / "healthy", "modelopt-fp8")
    assert found(static(healthy)) == {}


@pytest.mark.parametrize(
    ("scheme", "scale"),
    [
        ("modelopt-fp8", "input_scale"),
        ("modelopt-fp8", "weight_scale"),
        ("modelopt", "weight_scale_2"),
        ("nvfp4", "weight_global_scale"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_scale_of_a_whole_tensor_that_is_not_finite_is_named(
    scheme: str, scale: str, value: float, tmp_path: Path
) -> None:
    folder = quantised(tmp_path, scheme)
    assert found(static(folder)) == {}
    fill(folder, f"{UP}.{scale}", value)
    planted = found(static(folder))
    assert any(f"{UP}.{scale}" in each.modules for each in planted.values()), planted


def test_scales_of_blocks_are_sampled_and_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small, "SAMPLED_TENSORS", 4)
    monkeypatch.setattr(small, "SAMPLED_BYTES", 16)

    def plant(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{UP}.weight_scale"].view(torch.uint8).view(-1)[-1] = 0x7F

    def plant_all(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith("weight_scale"):
                tensor.view(torch.uint8).fill_(0x7F)

    folder = quantised(tmp_path / "nvfp4", "nvfp4", plant)
    report = static(folder)
    assert found(report) == {}
    scales = report.checkpoint.scales
    assert scales.num_stored is not None
    assert 0 < scales.num_scales < scales.num_stored
    said = f"Scales were sampled, {scales.num_scales:,} of {scales.num_stored:,}: the others may"
    assert said in report.findings[-1].message
    assert found(static(folder, full=True))["PC610"].modules == (f"{UP}.weight_scale",)
    change_weights(folder, plant_all)
    assert len(found(static(folder))["PC610"].modules) == 4


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"full": True}, "full, but not static"),
        ({"static": True, "stream": True}, "stream with static"),
        ({"stream": True, "resident": True}, "stream with resident"),
        ({"stream": True, "generate": 4}, "stream with resident"),
    ],
)
def test_options_that_do_not_go_together(
    tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        precheck.scan(tmp_path, **options)


# How much is read of models that are too large for this machine


def ignore(_event: Announcement | Step) -> None:
    """An observer that does not care."""


def decoder(hidden: int, inner: int, num_layers: int, key: int, vocabulary: int) -> dict[str, Any]:
    """The tensors of a Qwen2, dtype and shape by name."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(num_layers):
        parts = {
            "input_layernorm.weight": (hidden,),
            "mlp.down_proj.weight": (hidden, inner),
            "mlp.gate_proj.weight": (inner, hidden),
            "mlp.up_proj.weight": (inner, hidden),
            "post_attention_layernorm.weight": (hidden,),
            "self_attn.k_proj.bias": (key,),
            "self_attn.k_proj.weight": (key, hidden),
            "self_attn.o_proj.weight": (hidden, hidden),
            "self_attn.q_proj.bias": (hidden,),
            "self_attn.q_proj.weight": (hidden, hidden),
            "self_attn.v_proj.bias": (key,),
            "self_attn.v_proj.weight": (key, hidden),
        }
        shapes |= {f"model.layers.{layer}.{part}": shape for part, shape in parts.items()}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return {name: ("BF16", shape) for name, shape in shapes.items()}


class Text:
    def __init__(self, value: object) -> None:
        self._content = json.dumps(value).encode()
        self.size = len(self._content)

    def read(self, start: int, end: int) -> bytes:
        return self._content[start:end]


def repository(
    tensors: dict[str, Any], num_shards: int, config: dict[str, Any]
) -> dict[str, Content]:
    """Its files: shards of as many tensors each, sorted as safetensors sorts them, and an index."""
    names = list(tensors)
    size = -(-len(names) // num_shards)
    files: dict[str, Content] = {}
    index: dict[str, str] = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        own = names[number * size : (number + 1) * size]
        by_dtype = sorted(own, key=lambda name: (tensors[name][0] != "F32", name))
        files[file] = Virtual({name: tensors[name] for name in by_dtype})
        index |= dict.fromkeys(own, file)
    files["model.safetensors.index.json"] = Text({"weight_map": index})
    files["config.json"] = Text(config)
    files["tokenizer.json"] = Virtual({"a": ("U8", (7_000_000,))})
    return files


QWEN2 = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "dtype": "bfloat16",
}


def test_a_model_of_7_billion_takes_two_megabytes_and_200_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = repository(decoder(3584, 18944, 28, 512, 152064), 4, QWEN2)
    with served(files) as hub, endpoint(hub, tmp_path / "cache", monkeypatch):
        report = static(REPO)  # type: ignore[arg-type]
    assert report.model.num_parameters > 7e9
    assert found(report) == {}
    assert hub.total_bytes() < 2e6
    assert len(hub.requests) < 200


def read_small(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Reads the small tensors of a repository; how many there are."""
    with endpoint(hub, cache, monkeypatch):
        checkpoint = open_checkpoint(REPO, access=Access.DESCRIBED, observe=ignore)
        assert checkpoint.remote is not None
        with checkpoint.open_weights() as stored:
            parts = find_small_parts(stored)
            checkpoint.remote.hold(parts.spans(stored))
            for name in parts.whole:
                stored.stored_tensor(name)
    return len(parts.whole)


def test_163_shards_take_twenty_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = repository(decoder(16384, 53248, 126, 1024, 128256), 163, QWEN2)
    assert sum(file.size for file in files.values()) > 8e11
    with served(files) as hub:
        assert read_small(hub, tmp_path / "cache", monkeypatch) == 5 * 126 + 1
    assert hub.total_bytes() < 20e6
    assert len(hub.requests) < 3000  # what the Hub lets anybody ask for in five minutes


@pytest.mark.slow
def test_92400_scales_are_read_in_few_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors: dict[str, Any] = {}
    for linear in range(92_400):
        module = f"model.layers.{linear // 1540}.mlp.experts.{linear % 1540 // 3}.part{linear % 3}"
        tensors |= {
            f"{module}.input_global_scale": ("F32", (1,)),
            f"{module}.weight_global_scale": ("F32", (1,)),
            f"{module}.weight_packed": ("U8", (4096, 512)),
            f"{module}.weight_scale": ("F8_E4M3", (4096, 64)),
        }
    with served(repository(tensors, 40, QWEN2)) as hub:
        assert read_small(hub, tmp_path / "cache", monkeypatch) == 2 * 92_400
    of_scales = 2 * 92_400 * 4
    of_headers = sum(len(name) + 92 for name in tensors)  # as many again are in the index
    assert hub.total_bytes() < of_scales + 3 * of_headers
    assert len(hub.requests) < 300
