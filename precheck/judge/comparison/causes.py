"""What most likely explains that two reports differ.

It follows from where the difference shows. Float32 values that diverge can only come from other
inputs, other weights or other code, in that order of certainty, because the first two are in the
reports; where float32 agrees and 16 bits diverge, it is attention, arithmetic or a kernel.
"""

from __future__ import annotations

from math import isclose, log2
from typing import TYPE_CHECKING

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
)
from precheck.judge.thresholds import DIFFERENT_SIZE_FLOAT32
from precheck.records.configuration import Configuration
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report


def causes(first: Report, second: Report, pairs: list[Pair]) -> Iterator[str]:
    """One sentence each, likeliest first."""
    models = [
        f"{model.architecture} with {counted(model.num_decoder_layers, 'layer')}"
        for model in (first.model, second.model)
    ]
    if models[0] != models[1]:
        yield f"The reports are about different models: {models[0]}, {models[1]}."
        return
    incomplete = [
        f"The {which} scan is incomplete ({report.incomplete_reason or 'it ended early'})"
        for which, report in (("first", first), ("second", second))
        if not report.complete
    ]
    if incomplete:
        yield f"{'. '.join(incomplete)}. What it did not reach differs for that reason only."
        return
    references = [pair for pair in pairs if pair.first.configuration.is_reference]
    rescaled = _rescaled(first, second, references)
    if rescaled is not None:
        yield rescaled
        return
    module = _where_float32_diverges(first, second, references)
    if module is not None:
        yield from _why_float32_diverges(first, second, references, at=module)
    else:
        other_weights = tuple(_weights_that_differ(first, second, at=None))
        yield from other_weights or _why_rounding_diverges(first, second, pairs)
    yield from _what_was_asked(first, second, pairs)


def _rescaled(first: Report, second: Report, references: list[Pair]) -> str | None:
    """Other weights, the same float32 logits, and every size times a power of two: a fix."""
    of_layers = [
        after.abs_max / before.abs_max
        for pair in references
        for _, before, after in different_layers(pair)
        if before is not None and before.abs_max and after is not None and after.abs_max
    ]
    of_operations = [
        after.abs_max / before.abs_max
        for before, after in different_values(first, second)
        if before.abs_max and after.abs_max
    ]
    ratios = [*of_layers, *of_operations]
    if not different_weights(first, second) or not ratios or not all(map(_is_power, ratios)):
        return None
    if not references or not all(_same_logits(pair) for pair in references):
        return None
    powers = {round(log2(ratio)) for ratio in of_layers}
    stream = f"; the residual stream is scaled by 2^{powers.pop()}" if len(powers) == 1 else ""
    return (
        "The second is the first with weights multiplied by powers of two, as precheck fix does: "
        f"in float32 the logits are the same{stream}."
    )


def _is_power(ratio: float) -> bool:
    return isclose(ratio, 2.0 ** round(log2(ratio)), rel_tol=DIFFERENT_SIZE_FLOAT32.value)


def _same_logits(pair: Pair) -> bool:
    before, after = pair.first.logits, pair.second.logits
    if before is None or after is None or before.abs_max is None or after.abs_max is None:
        return False
    tolerance = DIFFERENT_SIZE_FLOAT32.value
    same_size = isclose(before.abs_max, after.abs_max, rel_tol=tolerance)
    perplexities = (before.perplexity, after.perplexity)
    return same_size and (
        None in perplexities
        or isclose(perplexities[0] or 0, perplexities[1] or 0, rel_tol=tolerance)
    )


def _where_float32_diverges(first: Report, second: Report, references: list[Pair]) -> str | None:
    """The first layer whose output differs, else the first operation inside one that does."""
    for pair in references:
        layers = different_layers(pair)
        if layers:
            return layers[0][0]
    different = {id(before) for before, _ in different_values(first, second)}
    return next((row.module for row in first.headroom if id(row) in different), None)


def _weights_that_differ(first: Report, second: Report, *, at: str | None) -> Iterator[str]:
    weights = different_weights(first, second)
    if weights:
        reach = f", and float32 values diverge from {at} on" if at else ""
        yield f"The weights differ in {listed(weights)}{reach}.{_moved_most(first, second)}"
    elif first.checkpoint.has_weights_of(second.checkpoint) is None and (
        first.model.revision != second.model.revision
    ):
        yield "The revisions differ, and one report has no checksums of its weights."


def _moved_most(first: Report, second: Report) -> str:
    """The operation whose largest value changed most."""
    different = different_values(first, second)
    if not different:
        return ""
    before, after = different[0]
    return (
        f" Largest change: {before.mechanism.phrase} in {before.module}, from "
        f"{magnitude(before.abs_max)} to {magnitude(after.abs_max)}."
    )


def _why_float32_diverges(
    first: Report, second: Report, references: list[Pair], *, at: str
) -> Iterator[str]:
    """Other inputs, other weights, or other code."""
    causes = list(_weights_that_differ(first, second, at=at))
    if _probe_sizes(first) != _probe_sizes(second):
        causes.append("The probes differ, and so do the values.")
    if causes:
        yield from causes
        return
    other_attention = [
        pair
        for pair in references
        if pair.first.attn_implementation != pair.second.attn_implementation
    ]
    for pair in other_attention:
        yield (
            f"{pair.name} used {pair.first.attn_implementation} in one and "
            f"{pair.second.attn_implementation} in the other, and they do not compute the "
            "same thing."
        )
    versions = _versions(first, second, "transformers")
    if versions is not None:
        yield (
            f"Float32 values diverge from {at} on: {_weights_known(first, second)} the modeling "
            f"code of transformers {versions[0]} and {versions[1]} computes different values there."
            f"{_moved_most(first, second)}"
        )
    elif not other_attention:
        yield (
            f"Float32 values diverge from {at} on, and nothing in the reports explains it: look "
            "for custom code in the checkpoint, other prompts of the same length, or a faulty "
            "device."
        )


def _weights_known(first: Report, second: Report) -> str:
    is_same = first.checkpoint.has_weights_of(second.checkpoint)
    return "the weights are the same, so" if is_same else "if the weights are the same,"


def _probe_sizes(report: Report) -> dict[str, int]:
    return {probe.name: probe.num_tokens for probe in report.probes}


def _why_rounding_diverges(first: Report, second: Report, pairs: list[Pair]) -> Iterator[str]:
    """Float32 agrees: the rounding differs by attention, arithmetic or a kernel."""
    rounded = [
        pair
        for pair in pairs
        if not pair.first.configuration.is_reference
        and (different_layers(pair) or any(True for _ in figures(pair)))
    ]
    if not rounded:
        return
    names = listed(tuple(pair.name for pair in rounded))
    causes = [
        f"{what}: {before} in one, {after} in the other"
        for pair in rounded
        for what, before, after in how(pair)
        if before != after
    ]
    for library in ("torch", "transformers"):
        versions = _versions(first, second, library)
        if versions is not None:
            causes.append(f"{library}: {versions[0]} in one, {versions[1]} in the other")
    if causes:
        yield (
            f"Float32 agrees, so weights and inputs are the same; {names} was computed "
            f"differently: {listed(tuple(dict.fromkeys(causes)))}."
        )
    else:
        yield (
            f"Float32 agrees, {names} differs, and the reports show no cause: another kernel "
            "was chosen, or the device computes wrongly (precheck gpus --check)."
        )


def _what_was_asked(first: Report, second: Report, pairs: list[Pair]) -> Iterator[str]:
    missing = [change.what for change in missing_runs(first, second)]
    if missing:
        is_formats = all(Configuration.parse(name).has_format for name in missing)
        flags = "--kv-cache-dtype, --quantization" if is_formats else "--dtype, --attn"
        yield f"The reports cover different configurations ({flags})."
    same = not any(different_layers(pair) or any(True for _ in figures(pair)) for pair in pairs)
    if same and not missing and (only_in(first, second) or only_in(second, first)):
        if first.precheck_version != second.precheck_version:
            yield "The figures agree; the findings differ because the versions of precheck do."
        else:
            yield "The figures agree; the findings differ because the devices or the probes do."


def _versions(first: Report, second: Report, library: str) -> tuple[str, str] | None:
    before = first.environment.libraries.get(library, NONE)
    after = second.environment.libraries.get(library, NONE)
    return None if before == after else (before, after)
