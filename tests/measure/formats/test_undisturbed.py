"""Runs with formats: the same bits however weights are kept, and nothing else changes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.errors import ScanInterrupted
from precheck.measure.lockstep.wave_run import WaveRun
from precheck.measure.models import streamed as streaming
from precheck.measure.models.streaming import load_units
from precheck.pipeline import scan
from precheck.records.configuration import Configuration
from tests.measure.lockstep.test_truth import same_bits
from tests.measure.models.test_streaming import assert_same
from tests.measure.scans import Pass, passes
from tests.measure.test_leaves_nothing import Interrupting, Traces
from tests.tiny_models import architectures, save_checkpoint, tiny, tiny_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.streaming.load_units import LoadUnit
    from precheck.measure.models.streaming.stored_parameters import StoredParameters
    from precheck.records.report import Report
    from tests.measure.models.test_streaming import Bits

FORMATS: dict[str, Any] = {
    "dtypes": ["bfloat16"],
    "kv_cache_dtypes": ["int4"],
    "quantizations": ["fp8", "int4"],
}
PROMPTS = [
    tiny_inputs("llama", batch=1, length=length)["input_ids"][0].tolist() for length in (40, 17, 90)
]
NAMES = ("gemma2", "qwen3_moe", "gpt2", "t5")


def scanned(folder: Path, **options: Any) -> tuple[Report, Bits]:
    """A report, and all passes; the search runs some configurations several times."""
    with passes() as found:
        report = scan(folder, prompts=PROMPTS, **(FORMATS | options))
    seen: Counter[object] = Counter()
    bits: dict[tuple[Any, ...], Pass] = {}
    for one in found:
        key = (one.skeleton.configuration, one.batch.probes)
        bits[(*key, seen[key])] = one
        seen[key] += 1
    return report, bits


@pytest.mark.parametrize("name", architectures(NAMES))
def test_streamed_weights_give_the_bits_of_resident_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    resident = scanned(folder, resident=True)
    assert len({configuration for configuration, *_ in resident[1]}) > 4
    assert len({probes for _, probes, _ in resident[1]}) > 2
    assert_same(scanned(folder), resident)
    planned: list[tuple[LoadUnit, ...]] = []

    def least(parameters: StoredParameters, layout: Architecture, *, limit: int, used: int) -> Any:
        """As much as the largest module needs in one dtype."""
        del limit
        modules = [module for module, _ in parameters.model.named_modules()]
        own = [parameters.names_in(module, recurse=False) for module in modules]
        need = max(load_units._largest(parameters, names) for names in own if names)  # noqa: SLF001
        planned.append(load_units.plan_load_units(parameters, layout, limit=used + need, used=used))
        return planned[-1]

    monkeypatch.setattr(streaming, "plan_load_units", least)
    assert_same(scanned(folder), resident)
    assert len(planned[0]) > tiny(name).config.num_hidden_layers


def test_a_live_module_is_left_as_it_was() -> None:
    model = tiny("gpt2", num_layers=2)
    model.train()
    before = Traces.of(model)
    report = scan(model, quick=True, generate=2, **FORMATS)
    assert Traces.of(model) == before
    assert {run.failure for run in report.runs} == {None}


@pytest.mark.parametrize("step", [9, 23, 40])
def test_it_is_after_an_interruption_too(step: int) -> None:
    model = tiny("gpt2", num_layers=2)
    before = Traces.of(model)
    with pytest.raises(ScanInterrupted):
        scan(model, quick=True, observe=Interrupting(step, KeyboardInterrupt), **FORMATS)
    assert Traces.of(model) == before


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> list[dict[Configuration, int]]:
    """Of each wave: how many operations every run called."""
    found: list[dict[Configuration, int]] = []
    go = WaveRun.go

    def counting(self: WaveRun) -> None:
        go(self)
        counts: Counter[Configuration] = Counter()
        for passage in self._passages:
            totals = passage.totals
            counts[passage.skeleton.configuration] += totals.num_watched
            counts[passage.skeleton.configuration] += totals.unwatched.total()
        found.append(dict(counts))

    monkeypatch.setattr(WaveRun, "go", counting)
    return found


@pytest.mark.parametrize("name", architectures(NAMES))
def test_runs_without_a_format_are_what_they_are_without_any(
    name: str, tmp_path: Path, operations: list[dict[Configuration, int]]
) -> None:
    folder = save_checkpoint(tiny(name), tmp_path, tokenizer=True)
    with passes() as found:
        plain = scan(folder, dtypes=["bfloat16"], prompts=PROMPTS)
    num_waves = len(operations)
    report, bits = scanned(folder)
    for wave, beside_formats in zip(operations[:num_waves], operations[num_waves:], strict=False):
        assert wave == {
            configuration: count
            for configuration, count in beside_formats.items()
            if not configuration.has_format
        }
        assert min(wave.values()) > 50
    for one in found:
        other = bits[one.skeleton.configuration, one.batch.probes, 0]
        assert [module for module, _ in one.layers] == [module for module, _ in other.layers]
        pairs = zip(one.layers, other.layers, strict=True)
        assert all(same_bits(hidden, expected) for (_, hidden), (_, expected) in pairs)
        assert same_bits(one.final[0], other.final[0])
    runs = tuple(run for run in report.runs if not Configuration.of(run).has_format)
    assert runs == plain.runs


def test_nothing_of_the_parameters_is_written(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("gpt2"), tmp_path, tokenizer=False)
    model = type(tiny("gpt2")).from_pretrained(folder, dtype=torch.bfloat16)
    before = {name: each.clone() for name, each in model.named_parameters()}
    scan(model, quick=True, **FORMATS)
    assert all(torch.equal(each, before[name]) for name, each in model.named_parameters())
