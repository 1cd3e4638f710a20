"""Weights that come and go give the bits of weights that stay; each is read once."""

from __future__ import annotations

import functools
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from precheck.checkpoint.source import open_checkpoint
from precheck.checkpoint.weights import Weights
from precheck.errors import CheckpointCorruptError, MemoryExhaustedError
from precheck.measure.lockstep.passage import Passage
from precheck.measure.lockstep.skipping import SkippedBlocks
from precheck.measure.models import split_head
from precheck.measure.models import streamed as streaming
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.empty import empty_model
from precheck.measure.models.streamed import StreamedModels
from precheck.measure.models.streaming import load_units
from precheck.measure.models.streaming.parameter_reader import ParameterReader
from precheck.measure.models.streaming.streamed_presence import StreamedPresence
from precheck.pipeline import scan
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Step
from tests.measure.lockstep.test_truth import same_bits
from tests.measure.scans import Pass, fault_named, passes, run_of
from tests.planted import planted_checkpoint
from tests.tiny_models import TINY, architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.streaming.load_units import LoadUnit
    from precheck.measure.models.streaming.stored_parameters import StoredParameters
    from precheck.records.report import Report

Bits = dict[tuple[Any, ...], Pass]


@functools.cache
def resident(folder: Path) -> tuple[Report, Bits]:
    """The scan with all weights in memory, once for each architecture."""
    with passes() as found:
        report = scan(folder, dtypes=["float16"], quick=True, resident=True)
    return report, by_name(found)


def by_name(found: list[Pass]) -> Bits:
    return {
        (each.configuration, *(probe.name for probe in each.batch.probes)): each for each in found
    }


def assert_same(streamed: tuple[Report, Bits], resident: tuple[Report, Bits]) -> None:
    (report, bits), (expected_report, expected_bits) = streamed, resident
    assert bits.keys() == expected_bits.keys()
    assert bits
    for key, one in bits.items():
        other = expected_bits[key]
        assert [name for name, _ in one.layers] == [name for name, _ in other.layers]
        pairs = zip(one.layers, other.layers, strict=True)
        assert all(same_bits(hidden, expected) for (_, hidden), (_, expected) in pairs)
        assert same_bits(one.final[0], other.final[0])
    content, expected_content = report.to_dict(), expected_report.to_dict()
    del content["coverage"]["unwatched_ops"], expected_content["coverage"]["unwatched_ops"]
    assert content == expected_content


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    place = tmp_path_factory.mktemp("models")
    yield {name: save_checkpoint(tiny(name), place / name, tokenizer=True) for name in TINY}
    shutil.rmtree(place)


@pytest.mark.parametrize("name", architectures(TINY))
def test_by_units(name: str, folders: dict[str, Path]) -> None:
    with passes() as found:
        report = scan(folders[name], dtypes=["float16"], quick=True)
    assert_same((report, by_name(found)), resident(folders[name]))


@pytest.mark.parametrize("name", architectures(TINY))
def test_by_modules(name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[tuple[LoadUnit, ...]] = []

    def least(parameters: StoredParameters, layout: Architecture, *, limit: int, used: int) -> Any:
        """As much as the largest module needs in one dtype."""
        del limit
        modules = [name for name, _ in parameters.model.named_modules()]
        own = [parameters.names_in(module, recurse=False) for module in modules]
        need = max(load_units._largest(parameters, names) for names in own if names)  # noqa: SLF001
        planned.append(load_units.plan_load_units(parameters, layout, limit=used + need, used=used))
        return planned[-1]

    monkeypatch.setattr(streaming, "plan_load_units", least)
    with passes() as found:
        report = scan(folders[name], dtypes=["float16"], quick=True)
    assert_same((report, by_name(found)), resident(folders[name]))
    blocks = tiny(name).config.num_hidden_layers
    assert len(planned[0]) > blocks


@pytest.mark.parametrize("name", architectures(TINY))
def test_by_rows_and_parts(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = resident(folders[name])
    monkeypatch.setattr(split_head, "PART_BYTES", 1 << 13)
    with passes() as found:
        report = scan(folders[name], dtypes=["float16"], quick=True)
    with passes() as expected:
        expected_report = scan(folders[name], dtypes=["float16"], quick=True, resident=True)
    assert_same((report, by_name(found)), (expected_report, by_name(expected)))
    # and split or not, they are the model's logits but for rounding
    for key, one in by_name(found).items():
        if one.skeleton.dtype is Dtype.FLOAT32:
            torch.testing.assert_close(one.final[0], whole[key].final[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", architectures(["qwen2", "mixtral", "t5"]))
def test_sharded(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = type(tiny(name)).from_pretrained(folders[name])
    save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    with passes() as found:
        report = scan(tmp_path, quick=True)
    with passes() as expected:
        expected_report = scan(tmp_path, quick=True, resident=True)
    assert_same((report, by_name(found)), (expected_report, by_name(expected)))


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_stored_in_another_dtype(stored: torch.dtype, tmp_path: Path) -> None:
    model: Any = tiny("llama")
    save_checkpoint(model.to(stored), tmp_path, tokenizer=True)
    with passes() as found:
        report = scan(tmp_path, quick=True)
    with passes() as expected:
        expected_report = scan(tmp_path, quick=True, resident=True)
    assert_same((report, by_name(found)), (expected_report, by_name(expected)))


def test_what_is_missing_or_does_not_fit_is_drawn_alike(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(3)
    weights["model.left.over"] = torch.zeros(3)
    save_file(weights, file, metadata={"format": "pt"})
    with passes() as found:
        report = scan(tmp_path, quick=True)
    with passes() as expected:
        expected_report = scan(tmp_path, quick=True, resident=True)
    assert report.checkpoint.missing == ("model.layers.1.mlp.up_proj.weight",)
    assert report.checkpoint.mismatched == ("model.layers.0.self_attn.q_proj.bias",)
    assert report.checkpoint.unexpected == ("model.left.over",)
    assert_same((report, by_name(found)), (expected_report, by_name(expected)))


def test_stored_buffers_are_there(tmp_path: Path) -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=16,
        v_head_dim=16,
    )
    torch.manual_seed(0)
    model = transformers.DeepseekV3ForCausalLM(config)
    bias = "e_score_correction_bias"
    buffers = [each for name, each in model.named_buffers() if name.endswith(bias)]
    assert buffers
    for buffer in buffers:
        buffer.copy_(torch.tensor([0.5, -0.5, 2.0, 0.0]))
    model.save_pretrained(tmp_path)
    with passes() as found:
        report = scan(tmp_path, prompts=[[5, 9, 200, 7]])
    with passes() as expected:
        expected_report = scan(tmp_path, prompts=[[5, 9, 200, 7]], resident=True)
    assert_same((report, by_name(found)), (expected_report, by_name(expected)))


@pytest.mark.parametrize("name", ["llama-weight", "qwen2-scores", "mixtral-product"])
def test_faults_are_found_alike(name: str, tmp_path: Path) -> None:
    fault = fault_named(name)
    planted_checkpoint(fault, tmp_path, tokenizer=False)
    options: dict[str, Any] = {
        "dtypes": [fault.dtype],
        "attn_implementations": [fault.attn_implementation],
        "quick": True,
    }
    assert scan(tmp_path, **options).to_dict() == scan(tmp_path, resident=True, **options).to_dict()


def test_each_stored_byte_is_read_once_for_all_runs(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, int]] = []
    close = StreamedModels.close

    def closing(weights: StreamedModels) -> None:
        stored = weights._stored  # noqa: SLF001
        read.append((weights.bytes_read, sum(stored.nbytes(name) for name in stored)))
        close(weights)

    monkeypatch.setattr(StreamedModels, "close", closing)
    report = scan(folders["qwen2"])
    assert len(report.runs) == 6
    assert read[0][0] == read[0][1]


def test_what_is_stored_stays_while_its_parts_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In the dtype it is stored in, a part is not a copy: its memory is not free after it.
    model: Any = tiny("llama")
    save_checkpoint(model.to(torch.bfloat16), tmp_path, tokenizer=True)
    monkeypatch.setattr(split_head, "PART_BYTES", 1 << 13)
    part, seen = ParameterReader.part, []

    def watched(reader: Any, conversion: Any, *args: Any) -> Any:
        result = part(reader, conversion, *args)
        stored = reader._current.stored[conversion.sources[0]]  # noqa: SLF001
        seen.append(stored.untyped_storage().data_ptr() in reader._buffers._lent)  # noqa: SLF001
        return result

    monkeypatch.setattr(ParameterReader, "part", watched)
    scan(tmp_path, quick=True, dtypes=["bfloat16"])
    assert len(seen) > 8
    assert all(seen)


def test_weights_are_gone_after_their_layer(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    present: list[set[str]] = []
    enter = Passage.enter_unit

    def entering(passage: Passage, unit: Any, args: Any, kwargs: Any) -> None:
        parameters = passage.skeleton.model.named_parameters()
        present.append({name for name, each in parameters if not each.is_meta})
        enter(passage, unit, args, kwargs)

    monkeypatch.setattr(Passage, "enter_unit", entering)
    scan(folders["llama"], quick=True)
    in_blocks = [names for names in present if any("layers." in name for name in names)]
    assert in_blocks
    for names in in_blocks:
        assert len({name.split(".")[2] for name in names}) == 1


def test_experts_are_merged_by_transformers_own_rules(tmp_path: Path) -> None:
    # The seam to transformers' loading internals: if they move, this says so.
    save_checkpoint(tiny("mixtral"), tmp_path, tokenizer=False)
    checkpoint = open_checkpoint(str(tmp_path), observe=lambda _: None)
    with Weights(checkpoint.weight_files) as stored:
        model, loading = empty_model(checkpoint, stored, Dtype.FLOAT16)
        conversions = find_conversions(model, stored)
        assert all(parameter.is_meta for parameter in model.parameters())
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
        assert loading.missing == loading.unexpected == loading.mismatched == ()
        merging = [each for each in conversions if each.converter is not None]
        promised = [name for each in conversions for name in each.parameter_names(model, stored)]
        converted = {
            name: tensor
            for conversion in conversions
            for name, tensor in conversion.convert(
                [stored[source].half() for source in conversion.sources], model
            ).items()
        }
    assert {len(each.sources) for each in merging} == {4, 8}  # four experts: down, gate and up
    assert promised == list(converted)
    expected = type(tiny("mixtral")).from_pretrained(tmp_path, dtype=torch.float16).state_dict()
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[name], expected[name]) for name in converted)


def test_a_limit_that_is_too_small_says_what_is_needed(folders: dict[str, Path]) -> None:
    with pytest.raises(
        MemoryExhaustedError, match=r"not enough memory: .* \(allowed 64.0 MiB\)"
    ) as caught:
        scan(folders["qwen2"], quick=True, max_memory=64 << 20)
    assert caught.value.hint
    assert "--max-memory" in caught.value.hint


def test_code_that_uses_weights_from_outside_gets_them_all_in_memory(tmp_path: Path) -> None:
    config = transformers.RwkvConfig(
        vocab_size=320, hidden_size=64, num_hidden_layers=2, attention_hidden_size=64
    )
    torch.manual_seed(0)
    transformers.RwkvForCausalLM(config).save_pretrained(tmp_path)
    said: list[str] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Announcement):
            said.append(event.text)

    report = scan(tmp_path, prompts=[[5, 9, 200, 7]], dtypes=["float32"], observe=observe)
    assert report.complete
    assert run_of(report, "float32", "eager").verdict == "safe"
    assert any("keeping all weights in memory" in each for each in said)


# Files that change while they are read.


class Meddler:
    """Does something to the checkpoint when the scan has come to a layer."""

    def __init__(self, act: Any, *, at: str = "model.layers.1") -> None:
        self._act, self._at = act, at
        self.has_acted = False

    def __call__(self, event: Announcement | Step) -> None:
        if isinstance(event, Step) and event.unit == self._at and not self.has_acted:
            self.has_acted = True
            self._act()


def cut_off(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def replaced(file: Path) -> None:
    other = file.with_suffix(".new")
    shutil.copy(file, other)
    other.replace(file)


def overwritten(file: Path) -> None:
    content = file.read_bytes()
    with file.open("r+b") as stream:
        stream.write(content)


@pytest.mark.parametrize("happens", [cut_off, replaced, overwritten])
def test_a_file_that_changes_makes_the_scan_incomplete(happens: Any, tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2", num_layers=4), tmp_path, tokenizer=True)
    file = tmp_path / "model.safetensors"
    meddler = Meddler(lambda: happens(file))
    report = scan(tmp_path, quick=True, observe=meddler)
    assert meddler.has_acted
    assert not report.complete
    assert report.incomplete_reason is not None
    assert "weights file changed" in report.incomplete_reason
    assert str(file) in report.incomplete_reason
    for run in report.runs:
        assert (run.verdict, run.reason) == ("incomplete", report.incomplete_reason)
        assert [layer.index for layer in run.layers] == [0]  # what was measured is kept


def test_a_deleted_file_is_read_to_its_end(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)
    expected = scan(tmp_path, quick=True)
    report = scan(tmp_path, quick=True, observe=Meddler((tmp_path / "model.safetensors").unlink))
    assert report.to_dict() == expected.to_dict()


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=False)
    file = tmp_path / "model.safetensors"
    with Weights([file]) as weights:
        name = list(weights)[-1]
        cut_off(file)
        buffer = torch.empty(weights.nbytes(name), dtype=torch.uint8)
        with pytest.raises(CheckpointCorruptError, match="it was truncated while it was read"):
            weights.read_into(name, buffer)


# Runs that are NaN everywhere.


def test_a_run_that_is_nan_everywhere_stops_and_its_report_stays_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopped = scan("demo:qwen2-eager", quick=True)
    monkeypatch.setattr(SkippedBlocks, "skip_if_all_nan", lambda *_: None)
    whole = scan("demo:qwen2-eager", quick=True)
    content, whole_content = stopped.to_dict(), whole.to_dict()
    broken = run_of(stopped, "float16", "eager")
    assert broken.stopped_after == "model.layers.3"
    assert broken.symptom is not None
    assert all(each.stopped_after is None for each in stopped.runs if each is not broken)
    for report in (content, whole_content):
        del report["coverage"]
        for run in report["runs"]:
            del run["stopped_after"]
        del report["headroom"]  # of layers that were not run, float16 knows no peaks
    assert content == whole_content


def test_a_stopped_run_computes_its_layers_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[tuple[str, str]] = []
    enter = StreamedPresence.enter

    def entering(presence: Any, module: str, args: Any, kwargs: Any) -> Any:
        skeleton = presence._skeleton  # noqa: SLF001
        entered.append((f"{skeleton.dtype} + {skeleton.attn_implementation}", module))
        return enter(presence, module, args, kwargs)

    monkeypatch.setattr(StreamedPresence, "enter", entering)
    scan("demo:qwen2-eager", quick=True)
    layers = [module for run, module in entered if run == "float16 + eager" and "layers" in module]
    assert max(layers) == "model.layers.3"
    assert ("float16 + eager", "lm_head") in entered
    assert ("float16 + sdpa", "model.layers.5") in entered
