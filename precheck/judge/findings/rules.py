"""All rules in one ordered tuple: a code, what it stands for, and the function that finds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from precheck.judge.findings import (
    attention,
    cache_scales,
    checkpoint,
    coverage,
    device,
    divergence,
    every_prompt,
    float16_paths,
    formats,
    headroom,
    key_values,
    libraries,
    live,
    overflow,
    positions,
    scales,
    stored,
    unmeasured,
)
from precheck.records.finding import Confidence, Finding, gravest_first
from precheck.records.mechanism import MECHANISMS
from precheck.records.outcomes.positions import PositionKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from precheck.judge.evidence import Evidence


class Rule(NamedTuple):
    """A stable code, its title, and its findings in given evidence."""

    code: str
    title: str
    find: Callable[[Evidence], Iterable[Finding]]


RULES = (
    Rule("PC514", "parameters are stored under other names", stored.renamed),
    Rule("PC501", "parameters are missing", checkpoint.missing),
    Rule("PC502", "parameters have another shape", checkpoint.mismatched),
    Rule("PC511", "weights are used without their scale", stored.unscaled),
    Rule("PC513", "tied weights are stored with different values", stored.untied),
    Rule("PC508", "a library is known to break this", libraries.known_faults),
    Rule("PC610", "scales are not finite", scales.not_finite),
    Rule("PC504", "weights are not finite", checkpoint.nonfinite),
    Rule("PC512", "weights are all zero", stored.all_zero),
    Rule("PC611", "scales are zero or negative", scales.zero_or_negative),
    Rule("PC612", "static scales of inputs are unusable", scales.broken_inputs),
    Rule("PC613", "static scales of inputs are missing", scales.missing_inputs),
    Rule("PC113", "the model is broken in float32", overflow.broken_in_float32),
    *(
        Rule(row.code, row.title, overflow.reaches_output(mechanism))
        for mechanism, row in MECHANISMS.items()
    ),
    Rule("PC111", "the output is not finite, and no operation is named", overflow.not_located),
    Rule("PC201", "accuracy is lost without any NaN", divergence.degraded),
    Rule(
        "PC721",
        "biases for distances are rounded",
        positions.lost_far_away(frozenset({PositionKind.BIAS})),
    ),
    Rule(
        "PC722",
        "positions or their angles are rounded",
        positions.lost_far_away(frozenset({PositionKind.ANGLE, PositionKind.NUMBER})),
    ),
    Rule(
        "PC720",
        "accuracy falls with the distance from the first token",
        positions.lost_far_away(frozenset()),
    ),
    Rule("PC602", "a format of the key-value cache costs accuracy", formats.cache_costs_accuracy),
    Rule("PC603", "a format of the weights costs accuracy", formats.weights_cost_accuracy),
    Rule("PC305", "float32 runs disagree", attention.references_disagree),
    Rule("PC303", "eager attention would overflow", attention.eager_would_overflow),
    Rule("PC114", "less than one bit of headroom is left", headroom.low_headroom),
    Rule("PC723", "a value grows with the length of the text", positions.growing),
    Rule("PC702", "near the limit, and not proved", every_prompt.near_and_open),
    Rule("PC701", "proved for every prompt", every_prompt.proved),
    Rule("PC703", "attention scores fit into float16", every_prompt.scores),
    Rule("PC704", "what layers add is bounded", every_prompt.residual_stream),
    Rule("PC115", "no partial sum can exceed float16", overflow.sums_that_fit),
    Rule("PC112", "an overflow was absorbed", overflow.absorbed),
    Rule("PC503", "weights beyond float16's maximum", checkpoint.out_of_float16_range),
    Rule("PC202", "weights too small for float16", divergence.flushed_weights),
    Rule("PC614", "block scales are too small for kernels", scales.subnormal_blocks),
    Rule("PC616", "scales of the cache do not fit", cache_scales.out_of_measured_range),
    Rule("PC617", "static scales of inputs do not fit", scales.misfitting_inputs),
    Rule("PC203", "precision not judged, experts differ", divergence.unjudged),
    Rule("PC204", "accuracy is lost on odd inputs", divergence.lost_on_odd_inputs),
    Rule("PC402", "a configuration could not be run", device.could_not_run),
    Rule("PC116", "documented for the model family", unmeasured.documented),
    Rule("PC601", "a key-value cache in fp8 would lose accuracy", key_values.fp8_cache),
    Rule("PC620", "an engine leaves float16 inside", float16_paths.leaves_float16),
    Rule("PC403", "an engine's default is unsafe here", device.unsafe_defaults),
    Rule("PC404", "does not fit into memory", device.too_large),
    Rule("PC901", "the scan is incomplete", coverage.incomplete),
    Rule("PC904", "prompts were run one by one", coverage.run_one_by_one),
    Rule("PC401", "bfloat16 is only emulated here", device.emulates_bfloat16),
    Rule("PC304", "another attention implementation was used", attention.replaced),
    Rule("PC520", "a live module was cast as a whole", live.cast_as_a_whole),
    Rule("PC505", "stored tensors are not used", checkpoint.unexpected),
    Rule("PC506", "config and tensors name different dtypes", checkpoint.declares_another_dtype),
    Rule("PC507", "modules are kept in float32", checkpoint.kept_in_float32),
    Rule("PC509", "the modeling code clamps values", checkpoint.clamps),
    Rule("PC615", "the cache's scales are not calibrated", cache_scales.uncalibrated),
    Rule("PC621", "an engine left float16 before", float16_paths.left_float16_before),
    Rule("PC405", "something is assumed about a device", device.assumed),
    Rule("PC605", "a format costs what such a format costs", formats.spread_loss),
    Rule("PC902", "probes were not run", coverage.probes_not_run),
    Rule("PC903", "nothing was run", unmeasured.nothing_was_run),
)
"""In the order in which they are reported; what makes the rest meaningless comes first."""


def findings(evidence: Evidence) -> tuple[Finding, ...]:
    """What every rule finds, gravest first, then in the order of the rules and of the runs."""
    in_order = [finding for rule in RULES for finding in rule.find(evidence)]
    if evidence.measurements.is_static:
        in_order = [_without_a_run(finding) for finding in in_order]
    return gravest_first(in_order)


def _without_a_run(finding: Finding) -> Finding:
    """What is said of the stored files holds whatever is run; nothing was measured."""
    if finding.confidence is not Confidence.MEASURED:
        return finding
    return replace(finding, confidence=Confidence.PROVED)
