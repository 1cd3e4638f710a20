"""Runs the prompts that were found as a scan does, and says what they refute."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.hunt.prompts import saved_prompts
from precheck.hunt.scans import scanned
from precheck.measure.hunt.targets import TargetWitness
from precheck.records.outcomes.hunt import CheckedRun, Hunt, HuntRow, HuntStatus

if TYPE_CHECKING:
    from precheck.hunt.request import HuntRequest
    from precheck.measure.hunt.targets import Target
    from precheck.measure.subject.subject import CheckpointSubject
    from precheck.records.progress import Observer
    from precheck.records.report import Report, Run
    from precheck.records.traces import Overflow


def check(
    found: Hunt,
    before: Report,
    subject: CheckpointSubject,
    request: HuntRequest,
    *,
    observe: Observer,
) -> Hunt:
    """The hunt with its prompts run in the dtype: what overflows there is refuted.

    Args:
        found: as the search left it.
        before: the report on the built-in probes.
        subject: the checkpoint.
        request: of the hunt.
        observe: receives progress.

    Raises:
        PrecheckError: the scan could not be completed.
    """
    witness = TargetWitness(request.dtype)
    by_probes = [run for run in before.runs if run.dtype is request.dtype]
    runs = []
    if found.prompts:
        with tempfile.TemporaryDirectory() as folder:
            prompts = saved_prompts(found, Path(folder) / "worst.jsonl")
            report = scanned(subject, request, witness=witness, prompts=prompts, observe=observe)
        runs = [run for run in report.runs if run.dtype is request.dtype]
    measured = _measured(witness, found)
    return replace(
        found,
        rows=tuple(
            _judged(row, measured=measured.get(_place(row), 0.0), runs=runs, by_probes=by_probes)
            for row in found.rows
        ),
        runs=tuple(map(_checked_run, runs)),
    )


def _place(of: HuntRow | Target) -> tuple[str, str, str]:
    return (of.module, of.op, of.source)


def _measured(witness: TargetWitness, found: Hunt) -> dict[tuple[str, str, str], float]:
    """The largest value of each operation in the scan of the prompts, in float32."""
    largest: dict[tuple[str, str, str], float] = {}
    for target in witness.targets(found.attn_implementation):
        place = _place(target)
        largest[place] = max(largest.get(place, 0.0), target.probes_abs_max)
    return largest


def _judged(row: HuntRow, *, measured: float, runs: list[Run], by_probes: list[Run]) -> HuntRow:
    """The row with what the scans say of it: of the prompts, else of the built-in probes."""
    row = replace(row, found_abs_max=max(row.found_abs_max, measured))
    for run in runs:
        for overflow in run.overflows:
            prompt = _first_prompt(overflow)
            if _is_of(overflow, row) and prompt is not None:
                return replace(row, status=HuntStatus.REFUTED, prompt=prompt)
    if any(_is_of(overflow, row) for run in by_probes for overflow in run.overflows):
        return replace(row, status=HuntStatus.REFUTED, prompt=None)
    return row


def _is_of(overflow: Overflow, row: HuntRow) -> bool:
    """Whether an overflow is of the mechanism and layer of a row."""
    return (overflow.mechanism, overflow.layer, overflow.section) == (
        row.mechanism,
        row.layer,
        row.section,
    )


def _checked_run(run: Run) -> CheckedRun:
    first = run.first_overflow
    return CheckedRun(
        name=run.name,
        verdict=run.verdict,
        reason=run.reason,
        first_overflow=first,
        prompt=None if first is None else _first_prompt(first),
    )


def _first_prompt(overflow: Overflow) -> int | None:
    """Index of the first of the prompts in which it happened."""
    for name in overflow.probes:
        kind, _, number = name.rpartition("_")
        if kind == "prompt":
            return int(number) - 1
    return None
