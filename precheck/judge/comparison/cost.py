"""Whether other weights of a model cost too much."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.judge.verdict import is_degraded_by_format
from precheck.records.loss import loss

if TYPE_CHECKING:
    from precheck.records.outcomes.weights_cost import WeightsCost


def judged_cost(cost: WeightsCost) -> WeightsCost:
    """The same, judged as a run in a format is; what could not be run costs too much."""
    run = cost.run
    is_finite = all(layer.is_finite for layer in run.layers) and not (
        run.logits is not None and run.logits.num_nonfinite
    )
    is_broken = run.failure is not None or not is_finite
    too_much = is_broken or is_degraded_by_format(loss(run), None)
    return replace(cost, too_much=too_much)
