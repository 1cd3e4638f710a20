"""What changes with the distance is told, with its cause, and nothing else is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.finding import Severity
from precheck.records.outcomes.positions import (
    LongText,
    PositionFigures,
    PositionKind,
    PositionRounding,
    bucket_edges,
    by_octave,
    columns_by_bucket,
)
from precheck.records.precision import Dtype
from precheck.records.report import Report
from precheck.render.formats.console_report import render_console
from precheck.render.formats.markdown_report import MarkdownReport
from precheck.render.parts.charts import charts
from tests import hand_made

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.records.finding import Finding

TOKENS = 4096
CODES = frozenset({"PC720", "PC721", "PC722", "PC723"})


def figures(
    kl: Callable[[int], float], size: Callable[[int], float] = lambda _: 20.0
) -> tuple[PositionFigures, ...]:
    return tuple(
        PositionFigures(
            start=start,
            end=end,
            kl_divergence=kl(start),
            top1_agreement=0.9,
            abs_max={"attention_scores": size(end)},
        )
        for start, end in pairwise(bucket_edges(TOKENS))
    )


def rounding(kind: PositionKind, step: float) -> PositionRounding:
    return PositionRounding(
        kind=kind,
        module="model.layers.0.self_attn",
        op="aten.baddbmm",
        source="modeling_bloom.py:270",
        abs_max=512.0,
        step=step,
    )


def report(
    positions: tuple[PositionFigures, ...],
    *roundings: PositionRounding,
    dtype: Dtype = Dtype.BFLOAT16,
    context: int = 32_768,
) -> Report:
    base = hand_made.measurements()
    runs = tuple(
        replace(run, positions=positions, position_roundings=roundings)
        if run.dtype is dtype and run.attn_implementation == "eager"
        else run
        for run in base.runs
    )
    text = LongText(probe="context", num_tokens=TOKENS, part_tokens=1024)
    return judge(
        replace(
            base,
            runs=runs,
            model=replace(base.model, max_context=context),
            coverage=replace(base.coverage, long_text=text),
        ),
        version="0.1.0",
    )


def found(judged: Report) -> list[Finding]:
    return [finding for finding in judged.findings if finding.code in CODES]


FALLING = figures(lambda start: 1e-4 if start < 512 else 0.2)
BIAS = rounding(PositionKind.BIAS, 4.0)


@pytest.mark.parametrize(
    ("roundings", "code", "said"),
    [
        ((), "PC720", "above 0.01 from token 512 on"),
        ((BIAS,), "PC721", "they reach 512, where neighbouring values are 4"),
        ((rounding(PositionKind.ANGLE, 4.0),), "PC722", "angles of the rotary embedding"),
        ((rounding(PositionKind.NUMBER, 4.0),), "PC722", "several tokens get the same"),
        ((rounding(PositionKind.BIAS, 0.125),), "PC720", "up to 0.2."),
        ((rounding(PositionKind.ANGLE, 8.0), rounding(PositionKind.BIAS, 0.5)), "PC722", "radians"),
    ],
    ids=["no cause", "bias", "angle", "number", "a fine bias", "the coarsest"],
)
def test_accuracy_that_falls_is_told_with_its_cause(
    roundings: tuple[PositionRounding, ...], code: str, said: str
) -> None:
    (finding,) = found(report(FALLING, *roundings))
    assert finding.code == code
    assert said in finding.message
    assert "below 512 tokens" in finding.advice
    assert finding.severity is Severity.WARNING  # the verdict of this run is safe


@pytest.mark.parametrize(
    "positions",
    [
        figures(lambda _: 1e-4),
        figures(lambda _: 0.2),
        figures(lambda start: 0.2 if start == 512 else 1e-4),
        figures(lambda start: 0.03 if start else 0.012),
        (),
    ],
    ids=["close", "far everywhere", "once", "a little worse", "no long text"],
)
def test_nothing_is_told_of_what_does_not_fall(positions: tuple[PositionFigures, ...]) -> None:
    assert found(report(positions, BIAS)) == []


@pytest.mark.parametrize(
    ("size", "context", "is_told"),
    [
        (lambda end: 4.0 * end, 32_768, True),
        (lambda end: 4.0 * end, 8_192, False),
        (lambda end: 16_000.0 * (1 + end % 3 / 100), 32_768, False),
        (lambda end: 10_000.0 * end**0.05, 1 << 30, False),
        (lambda end: 40_000.0 if end > 2048 else 4.0 * end, 32_768, True),
        (lambda end: 4.0 * min(end, 1024), 32_768, False),
    ],
    ids=["grows", "context ends before", "noise", "by chance", "jumps at last", "stops growing"],
)
def test_growth_is_foretold_where_the_context_reaches_it(
    size: Callable[[int], float], context: int, is_told: bool
) -> None:
    judged = report(figures(lambda _: 1e-5, size), dtype=Dtype.FLOAT16, context=context)
    assert [finding.code for finding in found(judged)] == (["PC723"] if is_told else [])


def test_every_format_shows_the_figures_by_position() -> None:
    judged = report(FALLING, BIAS)
    for text in (render_console(judged, width=120, colour=False), MarkdownReport().render(judged)):
        assert "KL and headroom by position in context (4,096 tokens, in parts of 1,024)" in text
        assert "2,048 to 4,095" in text
    drawn = {chart.title: chart for chart in charts(judged)}
    assert ": 0.2 nat" in drawn["KL divergence by position"].summary
    assert "Headroom in float16 by position" not in drawn
    in_float16 = {chart.title for chart in charts(report(FALLING, dtype=Dtype.FLOAT16))}
    assert "Headroom in float16 by position" in in_float16
    assert Report.from_dict(judged.to_dict()) == judged


@pytest.mark.parametrize("tokens", [1, 64, 65, 100, 300, 1800, 4096])
def test_buckets_cover_a_text_once_and_parts_of_it_too(tokens: int) -> None:
    edges = bucket_edges(tokens)
    assert (edges[0], edges[-1]) == (0, tokens)
    assert list(edges) == sorted(set(edges))
    for step in (7, 128, tokens):
        covered = [
            (bucket, first + column)
            for first in range(0, tokens, step)
            for bucket, columns in columns_by_bucket(
                tokens, first=first, count=min(step, tokens - first)
            )
            for column in range(columns.start, columns.stop)
        ]
        assert [position for _, position in covered] == list(range(tokens))
        assert all(edges[bucket] <= position < edges[bucket + 1] for bucket, position in covered)
    rows = tuple(PositionFigures(start=start, end=end) for start, end in pairwise(edges))
    octaves = by_octave(rows)
    assert [row.start for row in octaves[1:]] == [row.end for row in octaves[:-1]]
    assert octaves[-1].end == tokens


def test_octaves_weigh_buckets_by_their_tokens() -> None:
    rows = figures(lambda start: 1.0 if start == 64 else 3.0)
    assert by_octave(rows)[1].kl_divergence == pytest.approx((32 * 1.0 + 32 * 3.0) / 64)
    assert by_octave(rows)[2].kl_divergence == pytest.approx(3.0)
