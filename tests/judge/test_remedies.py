from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.traces import Section
from tests.judge import stories

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.records.advice import Remedy
    from precheck.records.report import Measurements


def looked_into(scan: Measurements, device: str = "T4") -> tuple[Remedy, ...]:
    advice = judge(scan, gpus=(device,), version="0.1.0").recommendation
    assert advice is not None
    return advice.remedies


def test_a_product_inside_one_block_is_helped_by_that_block() -> None:
    first, _, clamp = looked_into(stories.llama_product())
    assert first.helps
    assert first.what.startswith("model.layers.3.mlp in float32")
    assert "66,975" in first.why
    compile(first.snippet or "", "snippet", "exec")
    assert not clamp.helps
    assert "0.647" in clamp.why


@pytest.mark.parametrize(
    "mechanism", [Mechanism.RESIDUAL, Mechanism.MLP_OUTPUT, Mechanism.PROJECTION]
)
def test_what_is_handed_on_is_helped_by_no_module(mechanism: Mechanism) -> None:
    scan = stories.llama_product()
    rows = (stories.row(mechanism, layer=3, abs_max=70_000.0, module=".mlp.down_proj"),)
    first, *_ = looked_into(replace(scan, headroom=rows))
    assert not first.helps
    assert "the next layer gets that as its input" in first.why
    assert first.snippet is None


def test_two_blocks_are_not_one_module() -> None:
    scan = stories.llama_product()
    rows = tuple(
        stories.row(Mechanism.GATED_PRODUCT, layer=layer, abs_max=70_000.0, module=".mlp")
        for layer in (2, 3)
    )
    first, *_ = looked_into(replace(scan, headroom=rows))
    assert not first.helps
    assert "not one module but 2 exceed float16's maximum" in first.why


def test_nothing_is_looked_into_where_bfloat16_or_float16_will_do() -> None:
    assert looked_into(stories.llama_product(), "A100") == ()
    assert looked_into(stories.qwen2()) == ()


def rescaling(scan: Measurements) -> Remedy | None:
    return next((each for each in looked_into(scan) if "precheck fix" in each.what), None)


@pytest.mark.parametrize("story", [stories.gemma3, stories.llama_product])
def test_exact_rescaling_is_told_where_it_applies(story: Callable[[], Measurements]) -> None:
    found = rescaling(story())
    assert found is not None
    assert found.helps
    assert found.confidence == "predicted"
    assert found.snippet == f"precheck fix {story().model.id} -o ./fixed"


def with_model(**changes: object) -> Measurements:
    scan = stories.gemma3()
    return replace(scan, model=replace(scan.model, **changes))  # type: ignore[arg-type]


def with_towers() -> Measurements:
    scan = stories.gemma3()
    tower = replace(scan.runs[0].layers[0], section=Section.VISION)
    return replace(scan, runs=tuple(replace(run, layers=(tower, *run.layers)) for run in scan.runs))


def of_a_projection() -> Measurements:
    scan = stories.gemma3()
    runs = tuple(
        stories.broken_by(Mechanism.PROJECTION, run) if run.dtype is Dtype.FLOAT16 else run
        for run in scan.runs
    )
    return replace(scan, runs=runs)


@pytest.mark.parametrize(
    "scan",
    [
        with_model(quantization={"quant_method": "gptq", "bits": 4}),
        with_model(clamps=("modeling_t5.py:151",)),
        with_model(architecture="T5ForConditionalGeneration"),
        with_model(id="Qwen2ForCausalLM", architecture="Qwen2ForCausalLM"),
        with_towers(),
        of_a_projection(),
    ],
    ids=["quantised", "clamps", "no decoder", "live", "towers", "projection"],
)
def test_rescaling_is_not_promised_where_it_is_known_not_to_work(scan: Measurements) -> None:
    assert rescaling(scan) is None
    assert looked_into(scan)
    advice = [finding.advice for finding in judge(scan, gpus=("T4",), version="0.1.0").findings]
    assert not any("precheck fix" in each for each in advice)
