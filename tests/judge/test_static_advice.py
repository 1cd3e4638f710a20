"""What is advised where nothing was run: the range that is sure to hold, the declared dtype."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from tests.judge import stories

if TYPE_CHECKING:
    from precheck.records.advice import Recommendation


def advised(declared: str, device: str, *, model_type: str = "llama") -> Recommendation:
    """For a small model of which one input is documented that came close to float16's end."""
    base = stories.healthy(0.1)
    scan = replace(
        base,
        model=replace(
            base.model,
            model_type=model_type,
            declared_dtype=declared,
            tensor_dtypes={declared: 135_000_000},
        ),
        runs=(),
        headroom=(),
        probes=(),
        is_static=True,
    )
    advice = judge(scan, gpus=(device,), version="0.1.0").recommendation
    assert advice is not None
    return advice


@pytest.mark.parametrize("model_type", ["llama", "unheard_of"])
@pytest.mark.parametrize(
    ("declared", "device", "dtype"),
    [
        ("float32", "A100", "bfloat16"),
        ("float32", "T4", "float16"),
        ("bfloat16", "A100", "bfloat16"),
        ("bfloat16", "T4", "float16"),
        ("float16", "A100", "float16"),
        ("float16", "T4", "float16"),
    ],
)
def test_float16_is_advised_where_it_is_declared_or_nothing_wider_is_native(
    declared: str, device: str, dtype: str, model_type: str
) -> None:
    advice = advised(declared, device, model_type=model_type)
    assert advice.dtype == dtype
    reasons = "; ".join(advice.reasons)
    assert f"the checkpoint declares {declared}" in reasons
    is_unsure = dtype == "float16" and declared != "float16"
    assert ("whether float16 has enough range is not known" in reasons) == is_unsure


@pytest.mark.parametrize("device", ["A100", "T4"])
@pytest.mark.parametrize("declared", ["float32", "bfloat16", "float16"])
def test_what_the_checkpoint_declares_is_never_what_was_chosen_instead(
    declared: str, device: str
) -> None:
    advice = advised(declared, device)
    others = {"float32", "bfloat16", "float16"} - {declared}
    told = "; ".join((*advice.reasons, *(each.why for each in advice.rejected)))
    assert not any(f"declares {other}" in told for other in others)
    assert not any(f"declares ({other})" in told for other in others)


def test_what_is_documented_of_the_family_is_no_tick_for_an_engine() -> None:
    for each in advised("float32", "T4").engines[1:]:
        assert each.is_default_safe is None
        assert each.default.endswith(", not measured")
