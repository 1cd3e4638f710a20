"""The verdict line: what a reader takes away who reads nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.records.finding import USABLE, VERBS, Severity, Verdict
from precheck.records.quantities import counted, listed
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.stored_formats.words import cost_words, costly
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from precheck.records.finding import Finding
    from precheck.records.report import Report, Run

_PLURALS = {
    Verdict.OVERFLOW: "overflow",
    Verdict.DEGRADED: "lose accuracy",
    Verdict.FAILED: "could not be run",
    Verdict.INCOMPLETE: "are incomplete",
    Verdict.ABSORBED: "absorb an overflow",
    Verdict.LOW_HEADROOM: "have less than one bit of headroom",
}
"""What several runs with the verdict do; gravest for a reader first."""


_MEDIA = {
    "image probes": "images",
    "sound probes": "sounds",
    "sounds": "sounds",
    "videos": "videos",
}
"""What ``probes_not_run`` begins with where nothing of a kind was run."""


class Headline(NamedTuple):
    """A line, and the verdict it is marked with."""

    verdict: Verdict
    words: str


def headline(report: Report) -> Headline:
    """One line with the gravest that was found, or that all is well."""
    broken = broken_checkpoint(report)
    if broken is not None:
        return Headline(Verdict.OVERFLOW, f"BROKEN: {broken.gist}")
    if report.is_static:
        return _static(report)
    if not report.runs:
        return Headline(Verdict.FAILED, "NOTHING WAS MEASURED")
    said = [
        f"{listed(names, most=2)} {words if len(names) > 1 else VERBS[verdict]}"
        f"{_layers(report, verdict)}"
        for verdict, words in _PLURALS.items()
        if (names := _names(report, verdict))
    ]
    formats = costly(report)
    if formats:
        said.append(cost_words(report, formats))
    plain = len(plain_runs(report))
    if not said:
        return Headline(
            Verdict.SAFE,
            f"SAFE in {_all(plain)} measured{_in_formats(report)}, {_reach_of_all(report)}",
        )
    verdicts = {run.verdict for run in (*plain_runs(report), *formats)}
    gravest = next(verdict for verdict in _PLURALS if verdict in verdicts)
    if len(said) == 1 and formats:
        it = "it" if len(formats) == 1 else "them"
        said.append(f"without {it} SAFE in {_all(plain)} measured")
    return Headline(gravest, "; ".join(said))


def _reach_of_all(report: Report) -> str:
    halves = [run for run in report.runs if not run.configuration.is_reference]
    if halves and all(run.is_proved for run in halves):
        return f"no overflow for every prompt, accuracy {_tried(report)}"
    return _tried(report)


def _in_formats(report: Report) -> str:
    """How many runs had a format, where all are safe."""
    number = len(report.runs) - len(plain_runs(report))
    return f" and in {counted(number, 'format')}" if number else ""


def scope(report: Report) -> str:
    """How far the verdict reaches."""
    if report.is_static:
        read = "weights" if report.checkpoint.small is None else "small tensors"
        return f"nothing was run: config, headers and {read} were read, the rest is documented"
    probes = counted(len(report.probes), "probe")
    longest = counted(report.coverage.longest_probe_tokens, "token")
    is_in_headline = headline(report).verdict is Verdict.SAFE
    parts = [probes if is_in_headline else f"not tested beyond {longest} ({probes})"]
    if broken_checkpoint(report) is not None:
        parts = ["the runs only show how broken weights round"]
    elif _usable(report.runs) < len(report.runs):
        parts.insert(0, f"{_can_be_used(report)} can be used")
    if not report.complete:
        parts.append(f"INCOMPLETE: {report.incomplete_reason or 'the scan ended early'}")
    return shown("; ".join(parts))


def tested(report: Report) -> str:
    """How far the verdict reaches: ``up to 2,048 of 32,768 tokens (65 probes)``."""
    return f"{_tried(report)} ({counted(len(report.probes), 'probe')})"


def reach_of(report: Report, runs: Sequence[Run]) -> str:
    """How far the verdict on these runs reaches: what is proved holds for every prompt."""
    if runs and all(run.is_proved for run in runs):
        return f"no overflow for every prompt, accuracy {tested(report)}"
    return tested(report)


def _tried(report: Report) -> str:
    """How far SAFE reaches: how long the longest probe was, and what was not fed at all."""
    longest, context = report.coverage.longest_probe_tokens, report.model.max_context
    of = f" of {context:,}" if context is not None and context > longest else ""
    untried = tuple(
        word
        for kind, word in _MEDIA.items()
        if any(name.startswith(kind) for name in report.coverage.probes_not_run)
    )
    without = f"; not tried: {listed(untried)}" if untried else ""
    return f"up to {longest:,}{of} tokens{without}"


def identity(report: Report) -> str:
    """Which model this is about."""
    model = report.model
    parts = [
        model.id,
        model.architecture,
        counted(model.num_decoder_layers, "layer"),
        f"{_parameters(model.num_parameters)} parameters",
    ]
    if model.deploy_dtype is not None:
        parts.append(model.deploy_dtype)
    types = report.checkpoint.stored_types
    if types:
        parts.append(f"GGUF: {listed(tuple(each.name for each in types))}")
    if model.revision is not None:
        parts.insert(1, f"@{model.revision[:12]}")
    return shown(" · ".join(parts))


def _static(report: Report) -> Headline:
    """What speaks against the checkpoint as it would be loaded, without running it."""
    declared = report.model.deploy_dtype
    for severity, verdict in (
        (Severity.ERROR, Verdict.OVERFLOW),
        (Severity.WARNING, Verdict.LOW_HEADROOM),
    ):
        findings = [finding for finding in report.findings if finding.severity is severity]
        if findings:
            more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
            return Headline(verdict, f"NOT RUN: {findings[0].headline}{more}")
    return Headline(Verdict.SAFE, f"NOT RUN: nothing is known against {declared}")


def broken_checkpoint(report: Report) -> Finding | None:
    """The finding that makes every run of the checkpoint meaningless; None where there is none."""
    return next(
        (
            finding
            for finding in report.findings
            if finding.severity is Severity.ERROR
            and (finding.is_of_checkpoint or finding.code == "PC113")
        ),
        None,
    )


def _names(report: Report, verdict: Verdict) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.name for run in _of(report, verdict)))


def _of(report: Report, verdict: Verdict) -> Iterable[Run]:
    return (run for run in plain_runs(report) if run.verdict is verdict)


def _layers(report: Report, verdict: Verdict) -> str:
    places = {
        None if run.first_overflow is None else run.first_overflow.place
        for run in _of(report, verdict)
    }
    (place, *others) = places
    return "" if others or place is None else f" in {place}"


def _usable(runs: Iterable[Run]) -> int:
    return sum(run.verdict in USABLE for run in runs)


def _can_be_used(report: Report) -> str:
    """``5 of 6 configurations and 2 of 3 formats``."""
    plain = plain_runs(report)
    formats = [run for run in report.runs if run.configuration.has_format]
    counts = [
        f"{_usable(runs)} of {counted(len(runs), noun)}"
        for runs, noun in ((plain, "configuration"), (formats, "format"))
        if runs
    ]
    return " and ".join(counts)


def _all(number: int) -> str:
    return "the one configuration" if number == 1 else f"all {number} configurations"


def _parameters(number: int) -> str:
    """A number of parameters, in millions or billions.

    >>> _parameters(7_615_616_512), _parameters(1_214_080), _parameters(640)
    ('7.6 B', '1.2 M', '640')
    """
    for unit, letter in ((1e9, " B"), (1e6, " M")):
        if number >= unit:
            return f"{number / unit:.1f}{letter}"
    return f"{number:,}"
