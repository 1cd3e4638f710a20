"""What tests of checkpoints share."""

from __future__ import annotations

import pytest

from precheck.measure.static.data_flow import Followed


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A static scan that looks at the files alone: tracing the layers takes most of its time."""
    monkeypatch.setattr("precheck.measure.static.triage.follow", lambda *_, **__: Followed())
