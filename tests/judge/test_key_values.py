"""The rule of PC601: which ranges of keys and values warn, and what the warning says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.judge.thresholds import FP8_SCORE_ROUNDING
from precheck.records.sizes import KeyBias, KeyValueRange
from precheck.records.traces import Section
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.finding import Finding

HEAD_DIM = 64
QUERY = 16.0


def row(layer: int, *, moved: float = 0.0, **changes: object) -> KeyValueRange:
    """An attention whose scores move by so many nats; without a bias if they do not."""
    head_norm = moved * 16 * HEAD_DIM**0.5 / QUERY
    name = f"model.layers.{layer}.self_attn"
    bias = KeyBias(
        name=f"{name}.k_proj.bias",
        abs_max=head_norm / 2,
        norm=head_norm * 2,
        head_norm=head_norm,
    )
    healthy = KeyValueRange(
        layer=layer,
        section=Section.DECODER,
        module=name,
        query=QUERY,
        projected_key=20.0,
        key=20.0,
        value=11.0,
        head_dim=HEAD_DIM,
        is_key_normalised=False,
        key_bias=bias if moved else None,
    )
    return replace(healthy, **changes)  # type: ignore[arg-type]


def warning(*rows: KeyValueRange, generates: bool = True) -> Finding | None:
    healthy = hand_made.measurements()
    measured = replace(
        healthy, model=replace(healthy.model, generates=generates), key_values=tuple(rows)
    )
    found = [
        finding for finding in judge(measured, version="0.1.0").findings if finding.code == "PC601"
    ]
    return found[0] if found else None


def test_rounding_of_layers_counts_by_its_square() -> None:
    limit = FP8_SCORE_ROUNDING.value
    assert warning(row(0, moved=0.99 * limit)) is None
    assert warning(row(0, moved=1.01 * limit)) is not None
    each = limit / 2
    assert warning(*(row(layer, moved=0.99 * each) for layer in range(4))) is None
    assert warning(*(row(layer, moved=1.01 * each) for layer in range(4))) is not None


def test_names_the_layers_that_matter_the_worst_first() -> None:
    found = warning(row(0, moved=33.0), row(1, moved=1.2), row(2, moved=51.0))
    assert found is not None
    assert found.modules == tuple(f"model.layers.{index}.self_attn.k_proj.bias" for index in (2, 0))
    assert found.layer == 2
    assert found.gist == (
        "A key-value cache in fp8 would lose accuracy: model.layers.2.self_attn.k_proj.bias has a "
        "norm of 816 and elements up to 204"
    )
    assert "norm of 816 and elements up to 204" in found.message
    assert "by up to 51.0 nat in layer 2; also in layer 0 (33.0);" in found.message
    assert "--kv-cache-dtype-skip-layers 0 2)" in found.advice
    assert "calibrated k_scale" not in found.advice


@pytest.mark.parametrize(
    "changes",
    [
        {"is_key_normalised": True},
        {"key_bias": None},
        {"query": None},
        {"head_dim": None},
        {"section": Section.ENCODER},
    ],
)
def test_says_nothing_where_the_bias_does_not_matter(changes: dict[str, object]) -> None:
    assert warning(row(0, moved=100.0)) is not None
    assert warning(row(0, moved=100.0, **changes)) is None


def test_a_model_that_does_not_generate_has_no_cache() -> None:
    assert warning(row(0, moved=100.0), generates=False) is None


@pytest.mark.parametrize(("name", "what"), [("key", "key"), ("value", "value")])
def test_what_is_beyond_the_maximum_is_clipped(name: str, what: str) -> None:
    assert warning(row(3, **{name: 448.0})) is None
    found = warning(row(2, **{name: 500.0}), row(3, **{name: 1272.0}))
    assert found is not None
    assert found.module == "model.layers.3.self_attn"
    assert f"model.layers.3.self_attn has a {what} of 1,272" in found.message
    assert "clips at 448" in found.message
    assert "skip-layers 2 3)" in found.advice
    assert "calibrated k_scale" in found.advice
