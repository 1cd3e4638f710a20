"""How far a server is from each measured configuration, and how well each explains it.

Idea. Rounding is the signature of a dtype, but its errors depend on the order of summation: two
correct kernels in bfloat16 are as far from each other as each is from float32, and the nearest run
of a bfloat16 server can be the float32 one. So a distance is judged by what a server with other
kernels would show. With noise ``n``, twice what rounding alone does to the run, a distance ``d``
has the negative log likelihood ``log(n) + d / n``, up to constants, and the configuration with the
lowest is the likeliest. A run that is exact has little noise and explains only what is near; one
in bfloat16 explains more, and less specifically.

A format rounds as a dtype does: what else a kernel rounds decides which of two neighbours a number
becomes, so that after some layers two implementations of one format have errors of one size and
nothing in common. Those that store the same numbers are much nearer. A format is given the noise
of the one or of the other, whichever explains the server better.

A server fits a configuration if its distance is at most ``MOST_NOISE`` times the noise, and if it
is about as far from float32 as the configuration is. A prompt reads what the cache stores, or does
not: it is compared with the run with the format or with that without it, whichever is nearer.

What it cannot see: a fault that is smaller than the rounding of the dtype, and looks like it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from precheck.records.outcomes.served import ConfigurationDistance
from precheck.records.precision import Dtype
from precheck.served.compared import FLOAT32_NOISE, Compared, compare, likeness

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Answer
    from precheck.served.readings import Reading

FLOAT32_SHARES = {Dtype.FLOAT16: 2.0**-4, Dtype.BFLOAT16: 2.0**-10}
"""Of what a dtype's rounding costs: what float32 kernels differ by whose exponentials and attention
are approximate. llama.cpp with float32 weights and cache is 1e-6 nat from transformers on
SmolLM2-135M, where float16 costs 1.1e-5 and bfloat16 7e-4."""
KERNELS = 2.0
"""Two kernels that round alike and add up differently: their errors are independent."""
SAME_FORMAT = 0.1
"""Of what a format costs: what implementations differ by that store the same numbers, but for
details of scales."""
MOST_NOISE = 2.0
"""Times the noise: a kernel may round twice as much as transformers does."""
LEAST_SHARE = 0.1
"""Of a dtype's distance from float32 that a server like it has at least: llama.cpp rounds less
often than transformers; with SmolLM2-135M it is a third as far in float16, and a sixth in bfloat16.
"""
LEAST_FORMAT_SHARE = 0.4
"""The same of what a format costs: which numbers are stored is settled. Over 280 positions, vLLM's
and llama.cpp's formats of a cache cost 0.85 to 1.4 times what their emulation does; over seven
tokens after one prompt, llama.cpp's q8_0 costs 0.7 to 1.6 times as much."""
LEAST_PART = 0.25
"""Of all positions: prefill, or what follows, that says by itself how far a server is from float32.
A prompt whose probabilities a server does not tell has a single position, which may be any. A
choice."""


def distances(
    answers: Sequence[Answer],
    readings: Mapping[Configuration, Mapping[str, Reading]],
    failures: Mapping[Configuration, str],
) -> tuple[ConfigurationDistance, ...]:
    """How far the server is from every run, and how well each explains it.

    Args:
        answers: of the server, those with something to compare.
        readings: of every run.
        failures: configurations that could not be run, and why.
    """
    measured = {
        configuration: _measured(configuration, answers, readings)
        for configuration in readings
        if configuration not in failures
    }
    least = float32_noise(measured.values())
    scored = [_scored(each, measured, least) for each in measured.values()]
    return (
        *(each.row for each in scored),
        *(
            ConfigurationDistance(**_fields(configuration), failure=reason)
            for configuration, reason in failures.items()
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Measured:
    row: ConfigurationDistance
    configuration: Configuration
    compared: tuple[Compared, ...]
    """Of each answer."""
    shares: tuple[float, float]
    """Of positions: prefill, decoded."""
    rounding: tuple[float, float]
    """Distance of the run from float32: prefill, decoded."""


def _fields(configuration: Configuration) -> dict[str, Any]:
    return configuration.as_fields(ConfigurationDistance)


def _measured(
    configuration: Configuration,
    answers: Sequence[Answer],
    readings: Mapping[Configuration, Mapping[str, Reading]],
) -> _Measured:
    reference = readings[configuration.reference]
    rows = tuple(
        compare(answer, readings[configuration][answer.name], reference[answer.name])
        for answer in answers
    )
    own = readings[configuration]
    is_finite = all(own[answer.name].is_finite for answer in answers)
    numbers = [row.num_prefill for row in rows], [len(row.divergence) for row in rows]
    share = sum(numbers[0]) / max(1, sum(numbers[1]))
    most = [float(np.nanmean(row.most)) for row in rows if np.isfinite(row.most).any()]
    agreement = _agreement(answers, own)
    return _Measured(
        configuration=configuration,
        compared=rows,
        shares=(share, 1 - share),
        rounding=(
            _typical([row.rounding[: row.num_prefill] for row in rows]) or 0.0,
            _typical([row.rounding[row.num_prefill :] for row in rows]) or 0.0,
        ),
        row=ConfigurationDistance(
            **_fields(configuration),
            prefill=_typical([row.divergence[: row.num_prefill] for row in rows]),
            decoded=_typical([row.divergence[row.num_prefill :] for row in rows]),
            at_most=median(most) if most else None,
            top1_agreement=agreement,
            failure=None if is_finite else "it is not finite on these prompts",
        ),
    )


def _typical(parts: Sequence[NDArray[np.float64]]) -> float | None:
    """Median over the answers of the mean over positions: one odd token decides nothing."""
    means = [float(np.nanmean(part)) for part in parts if np.isfinite(part).any()]
    return median(means) if means else None


def _agreement(answers: Sequence[Answer], own: Mapping[str, Reading]) -> float | None:
    """Share of told positions where the server's likeliest token is the run's."""
    same = [
        place.ids[0] == own[answer.name].top_ids[row][0]
        for answer in answers
        for row, place in enumerate(answer.places)
        if place.is_told
    ]
    return sum(map(bool, same)) / len(same) if same else None


def float32_noise(measured: Iterable[_Measured]) -> float:
    """Nats that two float32 kernels may differ by on this model."""
    found = [
        FLOAT32_SHARES[each.row.dtype] * max(each.rounding)
        for each in measured
        if each.row.dtype in FLOAT32_SHARES
        and not each.configuration.has_format
        and each.row.failure is None
    ]
    return max(FLOAT32_NOISE, median(found)) if found else FLOAT32_NOISE


def _scored(
    each: _Measured, measured: Mapping[Configuration, _Measured], least: float
) -> _Measured:
    """With what a server like it would show, and how well that explains this one."""
    row = each.row
    if row.failure is not None or (row.prefill is None and row.decoded is None):
        return each
    plain = measured.get(each.configuration.without_formats, each)
    reference = measured[each.configuration.reference]
    # a prompt reads what its cache stores, or does not
    read = (each,) if row.kv_cache_dtype is None else (each, plain)
    parts = min(
        (_parts(prompt, each, plain, reference, least=least) for prompt in read),
        key=lambda parts: (not _fits(parts), _score(parts)),
    )
    shares = sum(part.share for part in parts)
    return replace(
        each,
        row=replace(
            row,
            from_reference=sum(part.share * part.own for part in parts) / shares,
            expected=MOST_NOISE * sum(part.share * part.noise for part in parts) / shares,
            likeness=likeness(each.compared, reference.compared),
            score=_score(parts),
            fits=_fits(parts),
        ),
    )


def _parts(
    prompt: _Measured, each: _Measured, plain: _Measured, reference: _Measured, *, least: float
) -> list[_Part]:
    """Prefill as one run has it and what follows as another, without what is not known."""
    return [
        _Part(
            share=share,
            distance=distance,
            rounding=rounding,
            own=own,
            from_float32=far or 0.0,
            least=least,
        )
        for share, distance, rounding, own, far in zip(
            each.shares,
            (prompt.row.prefill, each.row.decoded),
            plain.rounding,
            (prompt.rounding[0], each.rounding[1]),
            (reference.row.prefill, reference.row.decoded),
            strict=True,
        )
        if distance is not None
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """Prefill, or what follows; divergences in nats."""

    share: float
    """Of all positions."""
    distance: float
    rounding: float
    """Of the run without formats, from float32."""
    own: float
    """Of the run, from float32."""
    from_float32: float
    """Of the server, from float32."""
    least: float
    """What two float32 kernels may differ by."""

    @property
    def of_format(self) -> float:
        """What its format costs."""
        return max(0.0, self.own - self.rounding)

    @property
    def noise(self) -> float:
        """What other kernels make."""
        return max(self.least, KERNELS * self.own)

    @property
    def score(self) -> float:
        """Negative log likelihood of the distance, of kernels that store the same or do not."""
        same = max(self.least, KERNELS * self.rounding + SAME_FORMAT * self.of_format)
        return min(math.log(noise) + self.distance / noise for noise in (same, self.noise))

    @property
    def least_far(self) -> float:
        """From float32 that a server like it is."""
        plain = self.own - self.of_format
        return LEAST_SHARE * plain + LEAST_FORMAT_SHARE * self.of_format

    @property
    def is_near(self) -> bool:
        """Whether a server like it may be so far from it."""
        return self.distance <= MOST_NOISE * self.noise


def _score(parts: Sequence[_Part]) -> float:
    """Negative log likelihood of the distances, per position."""
    return sum(part.share * part.score for part in parts) / sum(part.share for part in parts)


def _fits(parts: Sequence[_Part]) -> bool:
    """Whether a server like it may be so far from it, and so near to float32."""
    large = [[part] for part in parts if part.share >= LEAST_PART]
    return all(part.is_near for part in parts) and all(map(_are_as_far, [parts, *large]))


def _are_as_far(parts: Sequence[_Part]) -> bool:
    own, server, lowest = (
        sum(part.share * size for part, size in zip(parts, sizes, strict=True))
        for sizes in (
            [part.own for part in parts],
            [part.from_float32 for part in parts],
            [part.least_far for part in parts],
        )
    )
    shares = sum(part.share for part in parts)
    return server >= lowest or own <= parts[0].least * shares
