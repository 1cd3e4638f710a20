"""The worst prompts of trained models are worse than the built-in probes; random texts beside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.real.fetch import NAMES
from tests.real.hunts import lines, searched

MODELS = Path(os.environ.get("PRECHECK_REAL_MODELS", "build/real"))
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        not all((MODELS / name).is_dir() for name in NAMES), reason="make real fetches the models"
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_is_worse_than_the_probes(name: str) -> None:
    result = searched(MODELS / name)
    print("\n".join(["", *lines([result])]))  # noqa: T201  the figures are what this is run for
    assert result.places or result.num_proved  # where all is proved nothing is left to search
    assert result.better("probes") >= len(result.places) / 2
