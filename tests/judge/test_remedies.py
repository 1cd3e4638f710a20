from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.mechanism import Mechanism
from tests.judge import stories

if TYPE_CHECKING:
    from precheck.records.advice import Remedy
    from precheck.records.report import Measurements


def looked_into(scan: Measurements, device: str = "T4") -> tuple[Remedy, ...]:
    advice = judge(scan, gpus=(device,), version="0.1.0").recommendation
    assert advice is not None
    return advice.remedies


def test_a_product_inside_one_block_is_helped_by_that_block() -> None:
    first, clamp = looked_into(stories.llama_product())
    assert first.helps
    assert first.what.startswith("model.layers.3.mlp in float32")
    assert "66,975" in first.why
    compile(first.snippet or "", "snippet", "exec")
    assert not clamp.helps
    assert "0.647" in clamp.why


@pytest.mark.parametrize("mechanism", [Mechanism.RESIDUAL, Mechanism.MLP_OUTPUT])
def test_what_is_handed_on_is_helped_by_no_module(mechanism: Mechanism) -> None:
    scan = stories.llama_product()
    rows = (stories.row(mechanism, layer=3, abs_max=70_000.0, module=".mlp.down_proj"),)
    first, _ = looked_into(replace(scan, headroom=rows))
    assert not first.helps
    assert "handed on" in first.why
    assert first.snippet is None


def test_two_blocks_are_not_one_module() -> None:
    scan = stories.llama_product()
    rows = tuple(
        stories.row(Mechanism.GATED_PRODUCT, layer=layer, abs_max=70_000.0, module=".mlp")
        for layer in (2, 3)
    )
    first, _ = looked_into(replace(scan, headroom=rows))
    assert not first.helps
    assert "2 modules leave float16" in first.why


def test_nothing_is_looked_into_where_bfloat16_or_float16_will_do() -> None:
    assert looked_into(stories.llama_product(), "A100") == ()
    assert looked_into(stories.qwen2()) == ()
