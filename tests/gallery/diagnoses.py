"""What a complete diagnosis is: every part of it, for every built-in model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.records.finding import Severity, Verdict
from precheck.records.traces import Section

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.records.mechanism import Mechanism
    from precheck.records.report import Report, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The answer that precheck owes to whoever reported the failure."""

    verdicts: dict[str, Verdict]
    """By ``float16 + eager``; every other run is safe."""
    code: str
    """Of the finding that says it."""
    recommended: str | None
    """On a GPU with both halves; None: float16 or bfloat16, by how the processor rounds."""
    mechanism: Mechanism | None = None
    module: str = ""
    op: str = ""
    layer: int | None = None
    section: Section = Section.DECODER
    abs_max: tuple[float, float] = (0.0, float("inf"))
    """Bounds of what the operation had to hold."""
    probes: frozenset[str] | None = None
    """All that trigger it; None for all there are."""
    greedy: str | None = None
    """In what a user of the broken run sees; None where the output is finite."""
    in_vain: str = ""
    """In what does not help."""
    options: frozenset[tuple[str, Any]] = frozenset()
    """Of the scan."""


SAMPLING = "probability tensor contains either `inf`, `nan` or element < 0"
BOTH = ("sdpa", "eager")


def float16(verdict: Verdict, *attention: str) -> dict[str, Verdict]:
    """Verdicts of the float16 runs."""
    return {f"float16 + {each}": verdict for each in attention or BOTH}


def built(name: str, folder: Path, *, is_planted: bool = True) -> Path:
    """A built-in model, or its healthy twin."""
    folder.mkdir()
    GALLERY[name].build(folder, is_planted=is_planted)
    return folder


def scanned(folder: Path, **options: Any) -> Report:
    """The report of a scan."""
    return precheck.scan(str(folder), **options)


class Reports(dict[str, "Report"]):
    """The reports of built-in models, by name, each scanned when it is first asked for.

    Args:
        folder: where the models are built.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Report:
        self[name] = scanned(built(name, self._folder / name))
        return self[name]


def check(report: Report, expected: Diagnosis) -> None:
    """Every part of a diagnosis."""
    verdicts = {run.name: run.verdict for run in report.runs}
    assert verdicts == dict.fromkeys(verdicts, Verdict.SAFE) | expected.verdicts
    assert expected.code in {finding.code for finding in report.findings}
    # of a GPU, because what is best on a CPU depends on which one this is
    chosen = next(
        recommendation
        for recommendation in report.other_recommendations
        if recommendation.target.compute_capability == "sm_80"
    )
    names = {f"{dtype} + sdpa" for dtype in ("float16", "bfloat16")}
    allowed = names if expected.recommended is None else {expected.recommended}
    assert f"{chosen.dtype} + {chosen.attn_implementation}" in allowed
    for run in report.runs:
        if run.name in expected.verdicts and expected.mechanism is not None:
            check_culprit(report, run, expected)
    said = " ".join(each.in_vain for each in report.findings if each.code == expected.code)
    assert expected.in_vain in said


def check_culprit(report: Report, run: Run, expected: Diagnosis) -> None:
    """The operation that a broken run is blamed on."""
    first = run.first_overflow
    if run.verdict in {Verdict.LOW_HEADROOM, Verdict.DEGRADED} and first is None:
        return
    assert first is not None
    assert (first.mechanism, first.module, first.op) == (
        expected.mechanism,
        expected.module,
        expected.op,
    )
    assert (first.layer, first.section) == (expected.layer, expected.section)
    assert first.source.partition(":")[0].endswith(".py")
    if first.reference_abs_max is not None:
        low, high = expected.abs_max
        assert low <= first.reference_abs_max <= high
    every = {probe.name for probe in report.probes if not probe.is_for_range}
    named = every if expected.probes is None else every & expected.probes
    assert every & set(first.probes) == named
    if expected.greedy is None:
        assert run.symptom is None
    else:
        assert run.symptom is not None
        assert expected.greedy in run.symptom.greedy
        assert SAMPLING in run.symptom.sampling


def check_silent(report: Report) -> None:
    """A healthy model: every run is safe, and nothing is said that asks for anything."""
    assert {run.name: run.reason for run in report.runs if run.verdict is not Verdict.SAFE} == {}
    loud = [finding for finding in report.findings if finding.severity is not Severity.NOTE]
    assert loud == []
