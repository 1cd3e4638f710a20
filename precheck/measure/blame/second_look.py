"""Runs a unit that breaks a second time and examines every operation, against the reference's.

Keeping every output of every run would cost hundreds of megabytes a layer. The inputs and the
weights are still there, so the few units that break are run again instead.
"""

from __future__ import annotations

from contextvars import Context
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.measure.blame.examine import CLEAN, Examiner, Producer, ReferenceOps
from precheck.measure.blame.unit_call import (
    UnitCall,
    hidden_states_in,
    needs_second_look,
    routed_nodes,
)
from precheck.measure.watch.segment import Segment
from precheck.measure.watch.trees import copied, results, tensors_in, versions_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from torch import Tensor

    from precheck.measure.watch.ops import OpWatcher
    from precheck.measure.watch.real_tokens import RealTokens


class Reexamined(NamedTuple):
    """The producers in a unit, and what its outputs carry."""

    sources: list[frozenset[int]]
    """What each output tensor is tainted by, in order."""
    producers: tuple[Producer, ...]
    segment: Segment
    """The operations the producers are among."""


class SecondLook:
    """Calls the units of one run again.

    Args:
        new_watcher: makes a watcher for the run's model.
        new_examiner: makes an examiner for the run, against snapshots or (None) by itself.
        replaying: a context in which calls of the run's units take no turn in the lockstep.
        real_tokens: which positions count.
    """

    def __init__(
        self,
        *,
        new_watcher: Callable[[], OpWatcher],
        new_examiner: Callable[[ReferenceOps | None], Examiner],
        replaying: Callable[[], AbstractContextManager[None]],
        real_tokens: RealTokens,
    ) -> None:
        self._new_watcher = new_watcher
        self._new_examiner = new_examiner
        self._replaying = replaying
        self._real_tokens = real_tokens

    def inspect(
        self, call: UnitCall, partner: UnitCall | None, reference: SecondLook
    ) -> Reexamined:
        """The producers in a unit and the taint of its outputs; runs it again only if it breaks.

        Args:
            call: the unit as this run called it.
            partner: the same unit as the reference called it; None if it called another.
            reference: the second look of the reference's run.
        """
        incoming = CLEAN.union(*call.sources)
        if incoming and call.is_all_nonfinite:
            return Reexamined([incoming for _ in call.results], (), call.segment)
        if not needs_second_look(call.segment, Segment() if partner is None else partner.segment):
            return Reexamined([CLEAN for _ in call.results], (), call.segment)
        return self._examine(call, partner, reference)

    def inspect_reference(self, call: UnitCall) -> Reexamined:
        """Like ``inspect``, for a reference itself: operations are judged without a match.

        Returns its own producers, but taints nothing: other runs are compared with its outputs.
        """
        clean = Reexamined([CLEAN for _ in call.results], (), call.segment)
        hidden = call.hidden_states
        if (
            hidden is None
            or all(node.is_finite for node in call.segment.nodes)
            or call.is_all_nonfinite
        ):
            return clean
        if not tensor_stats(self._real_tokens.tokens(hidden)).num_nonfinite:
            return clean
        examined = self._examine(call, None, self)
        return examined._replace(sources=clean.sources)

    def snapshots(self, call: UnitCall) -> ReferenceOps:
        """Snapshots of every operation of a reference's unit; taken once for all runs."""
        if call.ops is None:
            call.ops = ReferenceOps()
            self._call_again(call, copied(call.args), copied(call.kwargs), call.ops)
        return call.ops

    def _examine(
        self, call: UnitCall, partner: UnitCall | None, reference: SecondLook
    ) -> Reexamined:
        examiner = self._new_examiner(None if partner is None else reference.snapshots(partner))
        if partner is not None and _routes_differ(call, partner):
            routed = routed_nodes(call.segment)
            examiner.is_matchable = lambda node: (
                node.index not in routed or node.module == call.unit.name
            )
        args, kwargs = copied(call.args), copied(call.kwargs)
        for tensor, sources in zip(tensors_in((args, kwargs)), call.sources, strict=True):
            examiner.taint(tensor, sources)
        outputs, segment = self._call_again(call, args, kwargs, examiner)
        sources_of_outputs = [examiner.sources(output) for output in outputs]
        return Reexamined(sources_of_outputs, tuple(examiner.take_producers()), segment)

    def _call_again(
        self,
        call: UnitCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        examination: Examiner | ReferenceOps,
    ) -> tuple[list[Tensor], Segment]:
        inputs = list(tensors_in((args, kwargs)))
        versions = versions_of(inputs)
        watcher = self._new_watcher()
        watcher.examination = examination
        watcher.begin(hidden_states_in(inputs))
        # in a context of its own: the hidden states that a forward collects are kept in its context
        with self._replaying(), watcher:
            output = Context().run(call.module, *args, **kwargs)
        return results(output, inputs, versions), watcher.end()


def _routes_differ(call: UnitCall, partner: UnitCall) -> bool:
    routes = [chosen for _, chosen in call.segment.routes]
    partner_routes = [chosen for _, chosen in partner.segment.routes]
    return len(routes) != len(partner_routes) or not all(map(torch.equal, routes, partner_routes))
