"""Some modules in float32, the others in 16 bits, and the smallest set that is enough."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from precheck.cure.float32_modules import keep_in_float32, module_sizes, smallest_set
from tests.tiny_models import tiny, tiny_inputs

NAMES = [f"layers.{layer}.{part}" for layer in range(3) for part in ("q", "k", "v", "o")]


@given(needed=st.sets(st.sampled_from(NAMES)))
def test_what_is_needed_is_kept_and_nothing_else(needed: set[str]) -> None:
    tried: list[frozenset[str]] = []

    def is_enough(modules: frozenset[str]) -> bool:
        tried.append(modules)
        return needed <= modules

    assert set(smallest_set(dict.fromkeys(NAMES, 1), is_enough) or ()) == needed
    assert len(tried) < 60


@given(groups=st.sets(st.sampled_from([0, 1, 2]), min_size=1))
def test_modules_that_go_together_are_left_out_together(groups: set[int]) -> None:
    """Queries and keys of one layer have to have one dtype."""

    def is_enough(modules: frozenset[str]) -> bool:
        together = all(
            (f"layers.{layer}.q" in modules) == (f"layers.{layer}.k" in modules)
            for layer in range(3)
        )
        return together and all(f"layers.{layer}.q" in modules for layer in groups)

    smallest = set(smallest_set(dict.fromkeys(NAMES, 1), is_enough) or ())
    assert smallest == {f"layers.{layer}.{part}" for layer in groups for part in "qk"}


def test_none_if_nothing_is_enough() -> None:
    assert smallest_set({"a": 1}, lambda _: False) is None
    assert smallest_set({"a": 1}, lambda _: True) == frozenset()


def test_everything_in_float32_is_the_float32_model_of_rounded_weights() -> None:
    model = tiny("qwen2").half()
    expected = tiny("qwen2").half().float()
    handles = keep_in_float32(model, module_sizes(model))
    with torch.no_grad():
        mixed_logits = model(**tiny_inputs("qwen2")).logits
        float32_logits = expected(**tiny_inputs("qwen2")).logits
    assert torch.equal(mixed_logits, float32_logits)
    for handle in handles:
        handle.remove()


def test_nothing_in_float32_is_the_16_bit_model() -> None:
    model = tiny("qwen2").bfloat16()
    with torch.no_grad():
        before = model(**tiny_inputs("qwen2")).logits
        handles = keep_in_float32(model, ())
        assert torch.equal(model(**tiny_inputs("qwen2")).logits, before)
    for handle in handles:
        handle.remove()
