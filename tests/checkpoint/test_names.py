"""Parameters stored under other names, tied ones stored apart, shards, and weights of zeroes."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import precheck
from precheck.checkpoint.faults.renamings import find_renamings
from precheck.checkpoint.faults.zeros import lost_weights
from precheck.records.finding import Severity
from tests.shell import change_config, change_weights
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precheck.records.finding import Finding
    from precheck.records.report import Report

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny model of three layers, not tied."""
    return save_checkpoint(tiny("qwen2", num_layers=3), tmp_path / "model", tokenizer=False)


def scanned(folder: Path, **options: Any) -> Report:
    return precheck.scan(
        str(folder), quick=True, dtypes=["float32"], attn_implementations=["sdpa"], **options
    )


def finding(report: Report, code: str) -> Finding:
    (found,) = (each for each in report.findings if each.code == code)
    return found


def stored_findings(report: Report) -> list[str]:
    return [each.code for each in report.findings if each.code.startswith("PC5")]


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def rename(folder: Path, renamed: Callable[[str], str]) -> None:
    file = folder / "model.safetensors"
    tensors = {renamed(name): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


# Names


RENAMED: dict[str, Callable[[str], str]] = {
    "'_orig_mod.'": lambda name: f"_orig_mod.{name}",
    "'module._orig_mod.'": lambda name: f"module._orig_mod.{name}",
    "'wrapped.'": lambda name: name.replace(".mlp.", ".wrapped.mlp."),
    "'decoder.'": lambda name: name.replace("model.layers.", "model.decoder.layers."),
    "'network.' instead of 'model.'": lambda name: re.sub("^model", "network", name),
}


@pytest.mark.parametrize("part", RENAMED)
def test_a_part_that_differs_is_named_and_can_be_renamed(part: str, folder: Path) -> None:
    """The Python of the report is run, and the checkpoint is as it was."""
    before = load_file(folder / "model.safetensors")
    rename(folder, RENAMED[part])
    report = scanned(folder)
    found = finding(report, "PC514")
    assert found.severity is Severity.ERROR
    assert part in found.message
    assert stored_findings(report) == ["PC514"]
    exec(found.snippet, {})  # noqa: S102  what a reader would run
    after = load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [file.name for file in folder.glob("model*")] == ["model.safetensors"]


def test_shards_and_their_index_are_renamed_together(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tiny("qwen2", num_layers=3).save_pretrained(folder, max_shard_size="150KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    for file in folder.glob("*.safetensors"):
        shard = {f"module.{name}": tensor for name, tensor in load_file(file).items()}
        save_file(shard, file, metadata={"format": "pt"})
    names = content["weight_map"]
    index.write_text(json.dumps({"weight_map": {f"module.{name}": names[name] for name in names}}))
    exec(finding(scanned(folder), "PC514").snippet, {})  # noqa: S102
    assert json.loads(index.read_text())["weight_map"].keys() == tensors.keys()
    assert stored_findings(scanned(folder)) == []


def test_what_is_really_missing_is_told_besides(folder: Path) -> None:
    change_weights(folder, drop(UP))
    change_weights(folder, lambda tensors: tensors.update(extra=torch.ones(3)))
    rename(folder, lambda name: name if name == "extra" else f"module.{name}")
    report = scanned(folder)
    assert finding(report, "PC501").modules == (UP,)
    assert finding(report, "PC505").modules == ("extra",)
    assert UP not in finding(report, "PC514").modules


@pytest.mark.parametrize(
    ("missing", "unexpected"),
    [
        (["score.weight", "score.bias"], ["qa_outputs.weight", "qa_outputs.bias"]),
        (["model.norm.weight"], ["module.model.norm.weight"]),
        (["a.weight", "b.weight"], []),
        ([], ["a.weight", "b.weight"]),
    ],
    ids=["another head", "a single name", "nothing stored", "nothing missing"],
)
def test_a_coincidence_is_no_renaming(missing: list[str], unexpected: list[str]) -> None:
    assert find_renamings(missing, unexpected, fits=lambda _name, _parameter: True) == ()


def test_names_are_not_matched_where_shapes_are_not() -> None:
    missing = [f"layers.{layer}.up.weight" for layer in range(4)]
    stored = [f"module.{name}" for name in missing]
    assert find_renamings(missing, stored, fits=lambda _name, _parameter: False) == ()
    (found,) = find_renamings(missing, stored, fits=lambda name, _: "3" not in name)
    assert found.parameters == tuple(missing[:3])


def test_names_that_lack_a_part_are_matched_and_those_that_have_it_are_left() -> None:
    missing = ["base.layers.0.up.weight", "base.layers.1.up.weight"]
    (found,) = find_renamings(
        missing, [name.removeprefix("base.") for name in missing], fits=lambda *_: True
    )
    assert (found.old, found.new, found.is_prefix) == ("", "base.", True)


# Ties


def test_tied_by_the_config_and_stored_apart(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)
    for report in (scanned(folder), precheck.scan(str(folder), static=True)):
        found = finding(report, "PC513")
        assert (found.severity, found.modules) == (Severity.ERROR, (HEAD, EMBEDDING))
        assert stored_findings(report) == ["PC513"]


def test_the_measured_model_is_the_untied_one(folder: Path) -> None:
    """What the finding says of transformers 5."""
    apart = scanned(folder)
    change_config(folder, tie_word_embeddings=True)
    assert scanned(folder).runs == apart.runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_copies_of_what_is_tied_are_fine(dtype: torch.dtype, folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        tensors[EMBEDDING] = tensors[EMBEDDING].to(dtype)
        tensors[HEAD] = tensors[EMBEDDING].float().clone()

    change_weights(folder, copy)
    assert "PC513" not in stored_findings(scanned(folder))


def test_one_number_that_differs_is_enough(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=True)

    def copy(tensors: dict[str, torch.Tensor]) -> None:
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD][-1, -1] += 1

    change_weights(folder, copy)
    assert stored_findings(scanned(folder)) == ["PC513"]


def test_a_head_that_a_tie_would_fill(folder: Path) -> None:
    change_weights(folder, drop(HEAD))
    found = finding(scanned(folder), "PC501")
    assert '"tie_word_embeddings": true' in found.advice
    assert EMBEDDING in found.advice
    change_config(folder, tie_word_embeddings=True)
    assert stored_findings(scanned(folder)) == []


def test_no_tie_is_advised_where_the_embedding_is_missing_too(folder: Path) -> None:
    change_weights(folder, drop(HEAD))
    change_weights(folder, drop(EMBEDDING))
    assert "tie_word_embeddings" not in finding(scanned(folder), "PC501").advice


# Shapes


@pytest.mark.parametrize(
    "sharded",
    [lambda each: each.new_empty(0), lambda each: each.reshape(-1)[: each.numel() // 2].clone()],
    ids=["ZeRO-3", "FSDP"],
)
def test_weights_that_were_not_gathered(
    sharded: Callable[[torch.Tensor], torch.Tensor], folder: Path
) -> None:
    def shard(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if tensor.dim() > 1:
                tensors[name] = sharded(tensor)

    change_weights(folder, shard)
    found = finding(scanned(folder), "PC502")
    stored = list(load_file(folder / "model.safetensors")[HEAD].shape)
    assert f"{HEAD} {stored} instead of [320, 64]" in found.message
    assert "zero_to_fp32.py" in found.advice


def test_another_shape_is_shown_and_is_no_shard(folder: Path) -> None:
    change_config(folder, vocab_size=324)
    found = finding(scanned(folder), "PC502")
    assert f"{EMBEDDING} [320, 64] instead of [324, 64]" in found.message
    assert "zero_to_fp32.py" not in found.advice


# Zeroes


def zero(*names: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            tensors[name].zero_()

    return change


@pytest.mark.parametrize("name", [UP, HEAD, EMBEDDING])
def test_a_weight_of_zeroes_is_named(name: str, folder: Path) -> None:
    change_weights(folder, zero(name))
    for report in (scanned(folder), precheck.scan(str(folder), static=True, full=True)):
        found = finding(report, "PC512")
        assert (found.severity, found.modules) == (Severity.WARNING, (name,))


SHAPES = {
    f"layers.{layer}.{part}.weight": (8, 8)
    for layer in range(3)
    for part in ("attn.q", "attn.o", "mlp.up", "mlp.down")
}


@pytest.mark.parametrize(
    ("zeroes", "shapes"),
    [
        ({name for name in SHAPES if ".q." in name}, SHAPES),
        ({"layers.1.attn.o.weight", "layers.1.mlp.down.weight"}, SHAPES),
        ({"mask_token"}, {**SHAPES, "mask_token": (1, 1, 8)}),
        ({"position_embeddings"}, {**SHAPES, "position_embeddings": (1, 9, 8)}),
        ({"types.weight"}, {**SHAPES, "types.weight": (1, 8)}),
        ({"layers.1.attn.q.bias"}, {**SHAPES, "layers.1.attn.q.bias": (8,)}),
    ],
    ids=["in every layer", "a layer that does nothing", "mask token", "positions", "types", "bias"],
)
def test_zero_by_design_is_not_named(zeroes: set[str], shapes: dict[str, tuple[int, ...]]) -> None:
    assert lost_weights(shapes, zeroes) == ()


@pytest.mark.parametrize(
    "zeroes",
    [{"layers.1.mlp.down.weight"}, {name for name in SHAPES if name.startswith("layers.1.")}],
    ids=["one", "a whole layer"],
)
def test_zero_by_accident_is(zeroes: set[str]) -> None:
    assert set(lost_weights(SHAPES, zeroes)) == zeroes


def test_a_table_of_types_that_is_zero_is_not_named(tmp_path: Path) -> None:
    """Encoders that were made from one without types have zeroes there."""
    folder = save_checkpoint(tiny("bert", num_layers=3), tmp_path / "model", tokenizer=False)
    names = load_file(folder / "model.safetensors")
    (types,) = (name for name in names if name.endswith("token_type_embeddings.weight"))
    change_weights(folder, zero(types))
    assert "PC512" not in stored_findings(scanned(folder))
