"""Two reports compared: everything in which they differ.

Runs are matched by what was requested, layers by module, findings by code, module pattern and
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
from precheck.records.outcomes.difference import Change, Difference
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Environment, Report
    from precheck.records.traces import LayerTrace


_MOST_VALUES = 5


def difference(first: Report, second: Report) -> Difference:
    """In what the second report differs from the first, and the most likely reason."""
    pairs = pairs_of(first, second)
    explanations = tuple(causes(first, second, pairs))
    model = tuple(_model_changes(first, second))
    environment = tuple(_environment_changes(first, second, pairs))
    if first.complete != second.complete:  # what one did not reach is no difference
        return Difference(explanations=explanations, model=model, environment=environment)
    layers = tuple(change for pair in pairs if (change := _layer_change(pair)) is not None)
    return Difference(
        explanations=explanations,
        model=model,
        environment=environment,
        runs=(
            *missing_runs(first, second),
            *(change for pair in pairs for change in figures(pair)),
        ),
        layers=layers,
        values=tuple(_value_changes(first, second)),
        gone=only_in(first, second),
        new=only_in(second, first),
        advice=tuple(_advice_changes(first, second)),
    )


def _model_changes(first: Report, second: Report) -> Iterator[Change]:
    before, after = first.model, second.model
    is_same = first.checkpoint.has_weights_of(second.checkpoint)
    names = (
        ("model", before.id, after.id),
        ("revision", before.revision, after.revision),
    )
    facts = (
        *(() if is_same else names),  # the same weights in another folder are the same model
        ("architecture", before.architecture, after.architecture),
        ("decoder layers", before.num_decoder_layers, after.num_decoder_layers),
        ("parameters", before.num_parameters, after.num_parameters),
        ("stored as", " ".join(before.tensor_dtypes), " ".join(after.tensor_dtypes)),
        ("declared dtype", before.declared_dtype, after.declared_dtype),
        (
            "default attention",
            before.default_attn_implementation,
            after.default_attn_implementation,
        ),
        ("probes", _probes(first), _probes(second)),
        ("seed", first.seed, second.seed),
        ("complete", first.complete, second.complete),
        ("static, not run", first.is_static, second.is_static),
    )
    yield from _changed(facts)
    weights = different_weights(first, second)
    if weights:
        yield Change(
            what="weights",
            first=(first.checkpoint.digest or "?")[:12],
            second=f"{(second.checkpoint.digest or '?')[:12]}, different in {listed(weights)}",
        )


def _probes(report: Report) -> str:
    num_tokens = sum(probe.num_tokens for probe in report.probes)
    num_own = sum(probe.is_own for probe in report.probes)
    sizes = f"{counted(len(report.probes), 'probe')}, {counted(num_tokens, 'token')}"
    return f"{sizes}, {num_own} from the user" if num_own else sizes


def _environment_changes(first: Report, second: Report, pairs: list[Pair]) -> Iterator[Change]:
    before, after = first.environment, second.environment
    names = dict.fromkeys((*before.libraries, *after.libraries))
    facts = (
        ("precheck", first.precheck_version, second.precheck_version),
        *((name, before.libraries.get(name), after.libraries.get(name)) for name in names),
        ("Python", before.python, after.python),
        ("platform", before.platform, after.platform),
        ("CPU", before.cpu, after.cpu),
        ("threads", before.num_threads, after.num_threads),
        ("devices", _devices(before), _devices(after)),
    )
    yield from _changed(facts)
    for pair in pairs:
        yield from _changed(how(pair))


def _devices(environment: Environment) -> str:
    return ", ".join(
        " ".join(filter(None, (device.name, device.compute_capability, device.driver)))
        for device in environment.devices
    )


def _layer_change(pair: Pair) -> Change | None:
    """The first layer that differs, and how many do."""
    different = different_layers(pair)
    if not different:
        return None
    module, before, after = different[0]
    more = f", and {counted(len(different) - 1, 'further layer')}" if len(different) > 1 else ""
    return Change(
        what=f"{pair.name}, {module}{more}",
        first=_size(before),
        second=_size(after),
    )


def _value_changes(first: Report, second: Report) -> Iterator[Change]:
    """The few that differ most; where one value changes, those after it do too."""
    different = different_values(first, second)
    for before, after in different[:_MOST_VALUES]:
        only = "" if before.attn_implementation is None else f" ({before.attn_implementation})"
        yield Change(
            what=f"{before.mechanism.replace('_', ' ')}{only}, {before.module}, {before.op}",
            first=magnitude(before.abs_max),
            second=magnitude(after.abs_max),
        )


def _size(layer: LayerTrace | None) -> str:
    if layer is None:
        return "missing"
    size = NONE if layer.abs_max is None else magnitude(layer.abs_max)
    return f"{size}, not finite" if not layer.is_finite else size


def _advice_changes(first: Report, second: Report) -> Iterator[Change]:
    before = {advice.target.name: advice.name for advice in first.recommendations}
    after = {advice.target.name: advice.name for advice in second.recommendations}
    for name in before.keys() & after.keys():
        yield from _changed(((f"recommended on {name}", before[name], after[name]),))


def _changed(facts: tuple[tuple[str, object, object], ...]) -> Iterator[Change]:
    for what, before, after in facts:
        if before != after:
            yield Change(what=what, first=_words(before), second=_words(after))


def _words(value: object) -> str:
    if value is None or value == "":
        return NONE
    return f"{value:,}" if type(value) is int else str(value)
