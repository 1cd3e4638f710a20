"""Measurements in, a judged report out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge import hardware
from precheck.judge.evidence import Evidence
from precheck.judge.recommend import recommend
from precheck.judge.rules import findings
from precheck.judge.verdict import verdict
from precheck.records.report import Report

if TYPE_CHECKING:
    from precheck.judge.hardware import Hardware
    from precheck.records.report import Measurements


def judge(measurements: Measurements, *, gpus: tuple[str, ...] = (), version: str) -> Report:
    """The report on these measurements.

    Args:
        measurements: what was measured, complete or not.
        gpus: devices to advise for, the first one foremost; without any, the accelerator that
            was found, else this CPU and the two usual kinds of GPU.
        version: of precheck, for the report.

    Raises:
        UsageError: a GPU name that is not known.
    """
    wanted = tuple(hardware.target(name) for name in gpus) or _found(measurements)
    evidence = Evidence(
        measurements=measurements,
        runs=tuple(
            verdict(trace, runs=measurements.runs, headroom=measurements.headroom)
            for trace in measurements.runs
        ),
        devices=wanted,
    )
    others = hardware.usual_gpus() if wanted == (hardware.CPU,) and not gpus else ()
    first, *rest = (recommend(evidence, device=device) for device in (*wanted, *others))
    return Report(
        precheck_version=version,
        complete=measurements.complete,
        incomplete_reason=measurements.incomplete_reason,
        seed=measurements.seed,
        model=measurements.model,
        checkpoint=measurements.checkpoint,
        environment=measurements.environment,
        probes=measurements.probes,
        coverage=measurements.coverage,
        runs=evidence.runs,
        headroom=measurements.headroom,
        findings=findings(evidence),
        recommendation=first,
        other_recommendations=tuple(rest),
    )


def _found(measurements: Measurements) -> tuple[Hardware, ...]:
    """The accelerator that was found, or the CPU."""
    accelerators = [each for each in measurements.environment.devices if each.kind != "cpu"]
    return tuple(hardware.of(each) for each in accelerators[:1]) or (hardware.CPU,)
