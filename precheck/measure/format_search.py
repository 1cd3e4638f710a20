"""Which parts of a model lose what a format costs, and the fewest to leave out.

Idea. The error of what is stored does not tell how much worse the answers are, so every answer here
is a KL divergence of the model's own: a part loses what is lost when it alone is stored in the
format. All variants of one question advance in lockstep, so that the weights are read once for
each: first keys and values alone, then groups of parts, then the parts of the groups that lose
most, then growing sets of the gravest parts left out, the smallest good one narrowed down.

Assumptions. Some 256 tokens of ordinary text show it. Parts add up about: one that loses
nothing alone, and only beside others, is not found.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import reduce
from typing import TYPE_CHECKING

from precheck.measure.blame.mechanisms import Classifier
from precheck.measure.formats.culprit import cause_of, rounding_of, worst_channel
from precheck.measure.formats.parts import Parts, Storing
from precheck.measure.lockstep.clock import Clock
from precheck.measure.lockstep.figures.run_totals import RunTotals
from precheck.measure.lockstep.prompt_views import prompt_views
from precheck.measure.lockstep.wave_run import WaveRun
from precheck.measure.models.configurations import RunGroup
from precheck.records.format_loss import Cause, FormatCulprits, FormatPart

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from precheck.measure.inputs import Inputs
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.batch import Batch

MOST_TOKENS = 256
"""Of the texts that the search runs over; at least one text."""

MOST_VARIANTS = 8
"""Runs at once, besides the reference."""

SPREAD_SHARE = 0.25
"""Of the whole loss: where no group of parts loses as much, all lose a little, and the search ends:
no few of them could be left out."""

LEAST_SHARE = 0.05
"""Of the whole loss: a part that loses less alone is no culprit."""

MOST_LEFT_OUT = 0.5
"""Share of the parts: where more would have to stay in the dtype, the format is the wrong one."""


class FormatSearch:
    """Finds the culprits of one run with a format.

    Args:
        prepared: the models.
        inputs: the probes, of which a few texts are run again.
        skeleton: the run.
        limit: the KL divergence that is tolerable, nats.
        memory_limit: bytes that the scan may use.
    """

    def __init__(
        self,
        prepared: Prepared,
        inputs: Inputs,
        skeleton: Skeleton,
        *,
        limit: float,
        memory_limit: int,
    ) -> None:
        self._prepared = prepared
        self._skeleton = skeleton
        self._limit = limit
        self._memory_limit = memory_limit
        self._batches = [batch.to(prepared.device) for batch in _texts(inputs)]
        self._decode = inputs.vocabulary.decode
        self._reference = next(
            group.reference for group in prepared.groups if skeleton in group.others
        )

    def run(self) -> FormatCulprits | None:
        """The culprits; None where these texts do not show the loss."""
        if not self._batches:
            return None
        parts, (whole, *halves) = self._whole()
        if not self._limit < whole < math.inf or not parts.stats:
            return None
        names = list(dict.fromkeys(map(_switch, parts.stats)))
        alone = self._alone(list(_suspects(names, whole, halves)), whole)
        gravest = sorted(alone, key=lambda name: -alone[name])
        gravest = [name for name in gravest if LEAST_SHARE * whole <= alone[name] < math.inf]
        left_out, kl_left_out = self._smallest(gravest, names)
        stored, unstored = self._views() if halves else (None, None)
        return FormatCulprits(
            kl_divergence=whole,
            num_tokens=sum(batch.num_real_tokens for batch in self._batches),
            parts=tuple(self._described(name, alone[name], parts) for name in gravest),
            keys_alone=_if_finite(halves[0]) if halves else None,
            values_alone=_if_finite(halves[1]) if halves else None,
            after_stored_prompt=stored,
            after_unstored_prompt=unstored,
            left_out=tuple(map(self._module, left_out)),
            kl_divergence_left_out=kl_left_out,
        )

    def _described(self, name: str, kl_divergence: float, parts: Parts) -> FormatPart:
        of_part = {full: stats for full, stats in parts.stats.items() if _switch(full) == name}
        full = max(of_part, key=lambda full: rounding_of(of_part[full]))
        stats, what = of_part[full], full.rpartition(".")[2]
        head, channel = worst_channel(stats)
        module = self._module(_unit(name))
        tensor = self._bias(module, what)
        cause = cause_of(stats, head=head, channel=channel, has_bias=tensor is not None)
        index = _LAYER.search(module)
        return FormatPart(
            part=f"{module} {what}",
            layer=None if index is None else int(index[1]),
            kl_divergence=kl_divergence,
            abs_max=float(stats.largest.max()),
            clipped_share=stats.clipped_share,
            rounding=rounding_of(stats),
            head=head if what in _OF_A_CACHE else None,
            channel=channel,
            cause=cause,
            tensor=tensor if cause is Cause.BIAS else None,
        )

    def _module(self, unit: str) -> str:
        """The name of a layer of the cache, or of the module with a matrix."""
        number = unit.rpartition(".")[2]
        if number.isdigit():
            return f"{self._prepared.layout.decoder_layers}.{number}"
        return unit.removesuffix(".weight")

    def _bias(self, module: str, what: str) -> str | None:
        """The parameter that is added to keys or values in a layer, by its usual names."""
        names = _BIASES.get(what, ())
        return next(
            (
                name
                for name, _ in self._skeleton.model.named_parameters()
                if name.startswith(f"{module}.") and name.endswith(names)
            ),
            None,
        )

    # Questions, each of which is one pass of all its variants.

    def _whole(self) -> tuple[Parts, list[float]]:
        """What all parts are, and the loss of all of them; of a cache of keys and values alone."""
        parts = Parts()
        variants = [Storing(parts=parts)]
        if self._skeleton.configuration.kv_cache_dtype is not None:
            variants += [
                Storing(lambda part: part.endswith(".keys")),
                Storing(lambda part: part.endswith(".values")),
            ]
        return parts, self._measured(variants)

    def _alone(self, names: list[str], whole: float) -> dict[str, float]:
        """The loss of each part when it alone is stored, of those that lose enough as a group."""
        if not names:
            return {}
        size = -(-len(names) // MOST_VARIANTS)
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        losses = self._measured([_only(group) for group in groups])
        if size > 1 and max(losses) < SPREAD_SHARE * whole:
            return {}
        if size == 1:
            return dict(zip(names, losses, strict=True))
        left = [
            name
            for group, loss in zip(groups, losses, strict=True)
            if loss >= LEAST_SHARE * whole
            for name in group
        ]
        alone: dict[str, float] = {}
        for start in range(0, len(left), MOST_VARIANTS):
            some = left[start : start + MOST_VARIANTS]
            losses = self._measured([_only([name]) for name in some])
            alone |= dict(zip(some, losses, strict=True))
        return alone

    def _smallest(
        self, gravest: list[str], names: Sequence[str]
    ) -> tuple[tuple[str, ...], float | None]:
        """The fewest layers or matrices to leave out, gravest first, and the loss without them."""
        units = list(dict.fromkeys(map(_unit, gravest)))
        if not units:
            return (), None
        most = int(MOST_LEFT_OUT * len(set(map(_unit, names))))
        sizes = [size for size in (1, 2, 4, 8, 16, 32, 64) if size < len(units)] + [len(units)]
        found = self._first_good(units, [size for size in sizes if size <= most])
        if found is None:
            return (), None
        size, loss = found
        between = range(size // 2 + 1, size)
        size, loss = self._first_good(units, list(between)[:MOST_VARIANTS]) or (size, loss)
        return tuple(units[:size]), loss

    def _first_good(self, units: list[str], sizes: list[int]) -> tuple[int, float] | None:
        """The smallest of these numbers of units that is enough to leave out, and the loss."""
        losses = self._measured([_all_but(units[:size]) for size in sizes])
        good = (pair for pair in zip(sizes, losses, strict=True) if pair[1] <= self._limit)
        return next(good, None)

    def _views(self) -> tuple[float | None, float | None]:
        """The loss after a prompt that is stored, and after one that is not stored yet."""
        return prompt_views(
            self._skeleton,
            self._reference,
            self._batches,
            weights=self._prepared.models,
            layout=self._prepared.layout,
        )

    def _measured(self, variants: list[Storing]) -> list[float]:
        """KL divergence of each variant against float32, nats; infinite where it has no answer."""
        if not variants:
            return []
        largest = self._skeleton.storing.largest
        skeletons = [
            replace(self._skeleton.another(), storing=replace(storing, largest=largest))
            for storing in variants
        ]
        prepared = self._prepared
        run = WaveRun(
            self._batches,
            [RunGroup(reference=self._reference.another(), others=skeletons)],
            weights=prepared.models,
            layout=prepared.layout,
            classifier=Classifier(),
            decode=self._decode,
            clock=Clock.silent(),
            memory_limit=self._memory_limit,
            keeps_entries=False,
            facts=prepared.facts,
            witness=None,
            certificates=None,
        )
        run.go()
        merged = [reduce(RunTotals.merge, of_run) for of_run in zip(*run.totals, strict=True)]
        return [_divergence(totals) for totals in merged[1:]]


_OF_A_CACHE = frozenset({"keys", "values"})
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")
_FUSED = ("qkv_proj.bias", "query_key_value.bias", "c_attn.bias", "Wqkv.bias", "qkv.bias")
_BIASES = {
    "keys": ("k_proj.bias", "key.bias", "k_lin.bias", *_FUSED),
    "values": ("v_proj.bias", "value.bias", "v_lin.bias", *_FUSED),
}


def _switch(full: str) -> str:
    """What is switched for a recorded part: a matrix with its input; keys or values alone."""
    name, _, what = full.rpartition(".")
    return full if what in _OF_A_CACHE else name


def _unit(name: str) -> str:
    """What is left out together: keys and values of a layer; a matrix by itself."""
    before, _, what = name.rpartition(".")
    return before if what in _OF_A_CACHE else name


def _suspects(names: Iterable[str], whole: float, halves: list[float]) -> Iterable[str]:
    """Without the keys, or the values, if all of them together lose little."""
    grave = {
        what
        for what, loss in zip(("keys", "values"), halves, strict=False)
        if loss >= LEAST_SHARE * whole
    }
    return (name for name in names if not halves or name.rpartition(".")[2] in grave)


def _divergence(totals: RunTotals) -> float:
    return math.inf if totals.divergence is None else totals.divergence


def _if_finite(loss: float) -> float | None:
    return loss if loss < math.inf else None


def _texts(inputs: Inputs) -> list[Batch]:
    """Some of what the run is judged by, without padding, images and sounds; the shortest first."""
    texts = [
        batch.of_probes(lambda probe: probe.is_judged)
        for batch in inputs.plan.batches
        if not batch.is_padded
        and not batch.media
        and any(probe.is_judged for probe in batch.probes)
    ]
    texts.sort(key=lambda batch: batch.input_ids.shape[1])
    chosen: list[Batch] = []
    left = MOST_TOKENS
    for batch in texts:
        num_rows = left // batch.input_ids.shape[1]
        if num_rows or not chosen:
            kept = batch.probes[: max(1, num_rows)]
            chosen.append(batch.of_probes(frozenset(kept).__contains__))
            left -= chosen[-1].num_real_tokens
    return chosen


def _only(names: Collection[str]) -> Storing:
    return Storing(frozenset(names).__contains__)


def _all_but(units: Collection[str]) -> Storing:
    left_out = frozenset(units)
    return Storing(lambda part: _unit(part) not in left_out)
