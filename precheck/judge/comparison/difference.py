"""Two reports compared: everything that one says otherwise than the other.

Runs are matched by what was asked for, layers by module, findings by code, module pattern and
operation. Figures differ if they differ by more than rounding does between machines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.comparison.causes import causes
from precheck.judge.comparison.side_by_side import (
    NONE,
    Pair,
    different_layers,
    different_values,
    different_weights,
    figures,
    how,
    missing_runs,
    only_in,
    pairs_of,
)
from precheck.records.difference import Change, Difference
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.advice import Recommendation
    from precheck.records.report import Environment, Report
    from precheck.records.traces import LayerTrace


_MOST_VALUES = 5


def difference(first: Report, second: Report) -> Difference:
    """What the second report says otherwise than the first, and why, most likely."""
    pairs = pairs_of(first, second)
    layers = tuple(change for pair in pairs if (change := _layer_change(pair)) is not None)
    return Difference(
        explanations=tuple(causes(first, second, pairs)),
        model=tuple(_model_changes(first, second)),
        environment=tuple(_environment_changes(first, second, pairs)),
        runs=(*missing_runs(first, second), *(each for pair in pairs for each in figures(pair))),
        layers=layers,
        values=tuple(_value_changes(first, second)),
        gone=only_in(first, second),
        new=only_in(second, first),
        advice=tuple(_advice_changes(first, second)),
    )


def _model_changes(first: Report, second: Report) -> Iterator[Change]:
    ours, theirs = first.model, second.model
    digests = (first.checkpoint.digest, second.checkpoint.digest)
    is_same = digests[0] is not None and digests[0] == digests[1]
    names = (
        ("model", ours.id, theirs.id),
        ("revision", ours.revision, theirs.revision),
    )
    facts = (
        *(() if is_same else names),  # the same weights in another folder are the same model
        ("architecture", ours.architecture, theirs.architecture),
        ("decoder layers", ours.num_decoder_layers, theirs.num_decoder_layers),
        ("parameters", ours.num_parameters, theirs.num_parameters),
        ("stored as", " ".join(ours.tensor_dtypes), " ".join(theirs.tensor_dtypes)),
        ("declared dtype", ours.declared_dtype, theirs.declared_dtype),
        ("default attention", ours.default_attn_implementation, theirs.default_attn_implementation),
        ("probes", _probes(first), _probes(second)),
        ("seed", first.seed, second.seed),
        ("complete", first.complete, second.complete),
        ("only read, not run", first.is_static, second.is_static),
    )
    yield from _changed(facts)
    weights = different_weights(first, second)
    if weights:
        yield Change(
            what="weights",
            first=(first.checkpoint.digest or "?")[:12],
            second=f"{(second.checkpoint.digest or '?')[:12]}, other in {listed(weights)}",
        )


def _probes(report: Report) -> str:
    tokens = sum(each.num_tokens for each in report.probes)
    own = sum(each.is_own for each in report.probes)
    told = f"{counted(len(report.probes), 'probe')}, {counted(tokens, 'token')}"
    return f"{told}, {own} of the user's own" if own else told


def _environment_changes(first: Report, second: Report, pairs: list[Pair]) -> Iterator[Change]:
    ours, theirs = first.environment, second.environment
    names = dict.fromkeys((*ours.libraries, *theirs.libraries))
    facts = (
        ("precheck", first.precheck_version, second.precheck_version),
        *((name, ours.libraries.get(name), theirs.libraries.get(name)) for name in names),
        ("Python", ours.python, theirs.python),
        ("platform", ours.platform, theirs.platform),
        ("CPU", ours.cpu, theirs.cpu),
        ("threads", ours.num_threads, theirs.num_threads),
        ("devices", _devices(ours), _devices(theirs)),
    )
    yield from _changed(facts)
    for pair in pairs:
        yield from _changed(how(pair))


def _devices(environment: Environment) -> str:
    return ", ".join(
        " ".join(part for part in (each.name, each.compute_capability, each.driver) if part)
        for each in environment.devices
    )


def _layer_change(pair: Pair) -> Change | None:
    """The first layer that differs, and how many do."""
    different = different_layers(pair)
    if not different:
        return None
    place, ours, theirs = different[0]
    more = f", and {counted(len(different) - 1, 'further layer')}" if len(different) > 1 else ""
    return Change(
        what=f"{pair.name}, {place}{more}",
        first=_size(ours),
        second=_size(theirs),
    )


def _value_changes(first: Report, second: Report) -> Iterator[Change]:
    """The few that are farthest apart; where one value moves, those behind it do too."""
    different = different_values(first, second)
    for ours, theirs in different[:_MOST_VALUES]:
        only = "" if ours.attn_implementation is None else f" ({ours.attn_implementation})"
        yield Change(
            what=f"{ours.mechanism.replace('_', ' ')}{only}, {ours.module}, {ours.op}",
            first=magnitude(ours.abs_max),
            second=magnitude(theirs.abs_max),
        )


def _size(layer: LayerTrace | None) -> str:
    if layer is None:
        return "not there"
    size = NONE if layer.abs_max is None else magnitude(layer.abs_max)
    return f"{size}, not finite" if not layer.is_finite else size


def _advice_changes(first: Report, second: Report) -> Iterator[Change]:
    ours = {each.target.name: each for each in first.recommendations}
    theirs = {each.target.name: each for each in second.recommendations}
    for name in ours.keys() & theirs.keys():
        yield from _changed(((f"use on {name}", _use(ours[name]), _use(theirs[name])),))


def _use(advice: Recommendation) -> str:
    return "nothing" if advice.dtype is None else f"{advice.dtype} + {advice.attn_implementation}"


def _changed(facts: tuple[tuple[str, object, object], ...]) -> Iterator[Change]:
    for what, ours, theirs in facts:
        if ours != theirs:
            yield Change(what=what, first=_said(ours), second=_said(theirs))


def _said(value: object) -> str:
    if value is None or value == "":
        return NONE
    return f"{value:,}" if type(value) is int else str(value)
