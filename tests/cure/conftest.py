"""What all tests of fixes share."""

from __future__ import annotations

from functools import partial

import pytest

from precheck.measure import request
from precheck.measure.probes.builtin import HELD_OUT


@pytest.fixture(autouse=True)
def little_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts, and a token behind each: more would cost seconds, and prove nothing here.

    ``make fixes`` runs them all.
    """
    monkeypatch.setattr("precheck.measure.request.Request", partial(request.Request, quick=True))
    monkeypatch.setattr("precheck.cure.held_out.HELD_OUT", HELD_OUT[:2])
    monkeypatch.setattr("precheck.cure.job.NUM_GENERATED", 1)
