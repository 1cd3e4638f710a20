"""Formats bit for bit as compressed-tensors, ggml, bitsandbytes, torchao and quanto store them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file

from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS
from precheck.measure.formats.numbers import as_stored
from tests.measure.formats.stored_by_others import FILE

if TYPE_CHECKING:
    from precheck.facts.formats import Numbers

STORED = load_file(FILE)
DRAWN = STORED.pop("drawn")


def numbers_of(case: str) -> Numbers:
    name, part = case.split(".")
    rows = CACHE_FORMATS if part in {"keys", "values"} else WEIGHT_FORMATS
    found: Numbers = getattr(rows[name], part)
    return found


@pytest.mark.parametrize("case", sorted(STORED))
def test_other_libraries_store_the_same(case: str) -> None:
    stored = as_stored(DRAWN, numbers_of(case))
    assert torch.equal(stored, STORED[case])
    assert not torch.equal(stored, DRAWN)


def test_every_format_of_weights_was_stored_by_another_library() -> None:
    compared = [numbers_of(case) for case in STORED]
    alone = {row.name for row in WEIGHT_FORMATS.values() if row.weights not in compared}
    # vLLM's own scale per tensor: nothing but its kernels computes it
    assert alone == {"fp8_tensor"}
