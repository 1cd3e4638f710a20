"""What the tests of the probe room have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import transformers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True, scope="package")
def no_progress_bars() -> Iterator[None]:
    """Saving a model shows one, and its monitor thread would outlive the first test."""
    was_on = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    yield
    if was_on:
        transformers.logging.enable_progress_bar()
