"""Findings on what left the range of its dtype (PC1xx, PC301, PC302)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.findings.cures import cure, measured_safe
from precheck.records.finding import Confidence, Finding, Severity, Verdict
from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.precision import Accumulation, Dtype
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.traces import Overflow

NO_SAMPLING_CURE = (
    "Temperature, repetition penalty, an epsilon or clipping the logits do not help: the logits "
    "are already NaN before sampling. The instruct model has the same problem."
)
NOT_EQUIVALENT = (
    "Clamping and remove_invalid_values hide the NaN and change the answer "
    "(Gemma-3-12b, clamped: gsm8k 0.874 -> 0.647)."
)

_Location = tuple[str, str, str]
_RowsByLocation = dict[_Location, tuple[list[int], list["Overflow"]]]


def reaches_output(mechanism: Mechanism) -> Callable[[Evidence], Iterator[Finding]]:
    """The rule that finds this mechanism where its overflow reaches the output."""

    def rule(evidence: Evidence) -> Iterator[Finding]:
        for runs, rows in _escaped(evidence, mechanism=mechanism).values():
            yield _overflow_finding(evidence, runs=tuple(runs), rows=rows)

    return rule


def _escaped(evidence: Evidence, *, mechanism: Mechanism) -> _RowsByLocation:
    """By module, operation and line of its first row: the runs it happened in, and all its rows."""
    locations: _RowsByLocation = {}
    is_of_formats = mechanism is Mechanism.STORING
    for index, run in evidence.with_verdict(Verdict.OVERFLOW, has_format=is_of_formats):
        rows = [row for row in run.overflows if row.mechanism is mechanism and not row.absorbed]
        if rows:
            first = rows[0]
            location = (first.module, first.op, first.source)
            runs, all_rows = locations.setdefault(location, ([], []))
            runs.append(index)
            for row in rows:
                if row.module not in {other.module for other in all_rows}:
                    all_rows.append(row)
    return locations


def _overflow_finding(
    evidence: Evidence, *, runs: tuple[int, ...], rows: list[Overflow]
) -> Finding:
    first, mechanism = rows[0], MECHANISMS[rows[0].mechanism]
    names = tuple(evidence.runs[index].name for index in runs)
    others = (
        f" The same happens in {counted(len(rows) - 1, 'other module')}." if len(rows) > 1 else ""
    )
    safe = measured_safe(evidence)
    measured = f" Measured safe here: {listed(safe)}." if safe else ""
    return Finding(
        code=mechanism.code,
        severity=_severity(evidence, runs),
        confidence=Confidence.MEASURED,
        runs=runs,
        probes=first.probes,
        message=(
            f"{listed(names)}: {first.event} in {where(first)}. "
            f"{needs(first)} {mechanism.cause}{others} It spreads from there, "
            f"and the output is not finite.{_while_writing(evidence, runs)}"
        ),
        advice=f"{cure(evidence, first.mechanism, broken=_worst(evidence, runs))}{measured}",
        in_vain=_joined(mechanism.in_vain, *_no_cure(evidence)),
    ).at(*rows)


def _no_cure(evidence: Evidence) -> tuple[str, ...]:
    """What people try that does not help, whatever overflowed."""
    if evidence.measurements.model.generates:
        return NO_SAMPLING_CURE, NOT_EQUIVALENT
    return ("Clamping hides the NaN and changes the answer.",)


def _worst(evidence: Evidence, runs: tuple[int, ...]) -> Configuration:
    """The first configuration that breaks; what helps there is what is advised."""
    return evidence.runs[runs[0]].configuration


def _while_writing(evidence: Evidence, runs: tuple[int, ...]) -> str:
    """After how many generated tokens it starts, where the prompt itself is fine."""
    steps = {
        (generation.broken_step, generation.probe)
        for index in runs
        for generation in evidence.runs[index].generations
        if generation.broken_step
    }
    if not steps:
        return ""
    step, probe = min(steps)
    return f' With the prompt "{probe}" it starts after {counted(step, "generated token")}.'


def _severity(evidence: Evidence, runs: tuple[int, ...]) -> Severity:
    """A warning where only a kernel that accumulates in float16 breaks: few kernels do."""
    accumulations = {evidence.runs[index].accumulation for index in runs}
    return Severity.WARNING if accumulations == {Accumulation.FLOAT16} else Severity.ERROR


def sums_that_fit(evidence: Evidence) -> Iterator[Finding]:
    """Runs in which no partial sum of a product can exceed float16, whatever the kernel."""
    for index, run in enumerate(evidence.runs):
        sums = run.partial_sums
        if sums is None or sums.num_beyond_float16 or run.verdict is Verdict.FAILED:
            continue
        yield Finding(
            code="PC115",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            runs=(index,),
            module=sums.module,
            message=(
                f"No partial sum of a matrix product can exceed float16: |x| @ |w| is at most "
                f"{magnitude(sums.largest_bound)} ({sums.module}), over "
                f"{sums.num_products:,} products. A kernel that accumulates in float16 cannot "
                "overflow here, whatever the order of summation."
            ),
            advice="Nothing to do; this applies to the prompts that were run.",
        )


def where(row: Overflow) -> str:
    """Layer, module, operation and source line of an overflow."""
    layer = (
        f"{row.section} layer {row.layer} ({row.module})" if row.layer is not None else row.module
    )
    return f"{layer}, {row.op} at {row.source}"


def needs(row: Overflow) -> str:
    """The value that the operation had to represent, and the maximum of its dtype."""
    if row.mechanism is Mechanism.MASK and not row.is_out_of_range:
        return "No value is too large here."
    if row.reference_abs_max is None:
        return f"The maximum is {magnitude(row.limit)}; there is no float32 value to compare with."
    if row.partial_sum is not None:
        return (
            f"The result is {magnitude(row.reference_abs_max)}, but partial sums can reach "
            f"{magnitude(row.partial_sum)}; the maximum is {magnitude(row.limit)}."
        )
    only = "" if row.reference_abs_max > row.limit else "only "
    needed = magnitude(row.reference_abs_max)
    return f"In float32 it is {only}{needed}; the maximum is {magnitude(row.limit)}."


def not_located(evidence: Evidence) -> Iterator[Finding]:
    """Runs whose output is not finite although no watched operation caused it."""
    runs = tuple(
        index
        for index, run in evidence.with_verdict(Verdict.OVERFLOW)
        if run.first_overflow is None
    )
    if runs:
        names = tuple(evidence.runs[index].name for index in runs)
        yield Finding(
            code="PC111",
            severity=Severity.ERROR,
            confidence=Confidence.MEASURED,
            runs=runs,
            message=(
                f"{listed(names)}: the output is not finite, but no watched operation caused it. "
                "The fault is inside an operation that precheck does not watch."
            ),
            advice="Use a configuration that was measured safe.",
            in_vain=_joined(*_no_cure(evidence)),
        )


def absorbed(evidence: Evidence) -> Iterator[Finding]:
    """Overflows that later operations made finite again: a note, unless accuracy is lost too."""
    kinds: dict[tuple[Mechanism, str, str], tuple[list[int], list[Overflow]]] = {}
    for index, run in enumerate(evidence.runs):
        if run.reference_nonfinite or run.verdict is Verdict.FAILED:
            continue
        for row in run.overflows:
            if row.absorbed:
                runs, rows = kinds.setdefault((row.mechanism, row.op, row.source), ([], []))
                rows.append(row)
                if index not in runs:
                    runs.append(index)
    for runs, rows in kinds.values():
        yield _absorbed_finding(evidence, runs=tuple(runs), rows=rows)


def _absorbed_finding(
    evidence: Evidence, *, runs: tuple[int, ...], rows: list[Overflow]
) -> Finding:
    first = rows[0]
    verdicts = {evidence.runs[index].verdict for index in runs}
    is_harmful = Verdict.DEGRADED in verdicts
    if is_harmful:
        consequence = "The output is finite, but far from float32's: the run is degraded."
    elif Verdict.OVERFLOW in verdicts:
        consequence = "It is not what breaks the output."
    else:
        consequence = "The precision figures show no harm."
    return Finding(
        code="PC112",
        severity=Severity.WARNING if is_harmful else Severity.NOTE,
        confidence=Confidence.MEASURED,
        runs=runs,
        probes=first.probes,
        message=(
            f"{listed(tuple(evidence.runs[index].name for index in runs))}: "
            f"absorbed {first.event} in {where(first)} "
            f"({counted(len({row.module for row in rows}), 'module')}). {needs(first)} Later "
            f"operations made it finite again. {consequence}"
        ),
        advice=(
            cure(evidence, first.mechanism, broken=_worst(evidence, runs))
            if is_harmful
            else "Nothing to do here; other prompts may differ, so scan with yours (--prompts)."
        ),
        in_vain=NOT_EQUIVALENT if is_harmful else "",
    ).at(*rows)


def broken_in_float32(evidence: Evidence) -> Iterator[Finding]:
    """Float32 runs that are not finite: no other dtype helps there."""
    runs = evidence.broken_references
    if not runs:
        return
    first = next((row for index in runs for row in evidence.runs[index].overflows), None)
    names = tuple(evidence.runs[index].name for index in runs)
    start = f" It starts in {where(first)}." if first else ""
    finding = Finding(
        code="PC113",
        severity=Severity.ERROR,
        confidence=Confidence.MEASURED,
        runs=runs,
        message=(
            f"The model is broken in {Dtype.FLOAT32}: the output of {listed(names)} is not "
            f"finite.{start} No other dtype can be compared with it, and none will fix it."
        ),
        advice=(
            "Check the weights (a truncated download, a merge or a training run that diverged), "
            "then scan again."
        ),
        in_vain="Changing the dtype or the attention implementation does not help.",
    )
    yield finding.at(first) if first else finding


def _joined(*sentences: str) -> str:
    return " ".join(filter(None, sentences))
