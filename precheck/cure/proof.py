"""The proof of a fix: the original and the fixed checkpoint, on probes not used to choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from precheck.checkpoint.source import open_checkpoint
from precheck.cure.held_out import proof_probes
from precheck.cure.job import scanned
from precheck.cure.objections import objections
from precheck.cure.readings import as_config_says, diverged_copies
from precheck.measure.lockstep.witness import LogitsWitness
from precheck.records.outcomes.fix import Exactness, MechanismHeadroom, Proof, ProofRun
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.checkpoint.rewriting import Rounded
    from precheck.checkpoint.source import Checkpoint
    from precheck.cure.held_out import ProofProbes
    from precheck.cure.job import Job
    from precheck.cure.scales.solve import Choice
    from precheck.measure.lockstep.witness import Compared
    from precheck.records.report import Report, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The original as one kind of library loads it, on the probes of the proof."""

    is_tied: bool
    """Tied as the config says, where the file holds a different model."""
    report: Report
    logits: LogitsWitness
    """Its float32 logits, with which everything else is compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRuns:
    """The original's runs on the probes of the proof."""

    probes: ProofProbes
    readings: tuple[Reading, ...]
    """As the file says; then as the config says, where that is a different model."""
    runs: tuple[ProofRun, ...]

    @property
    def report(self) -> Report:
        """On the model that the file holds."""
        return self.readings[0].report

    @property
    def logits(self) -> LogitsWitness:
        """Of the model that the file holds."""
        return self.readings[0].logits


def run_original(job: Job) -> OriginalRuns:
    """Runs the original in every dtype."""
    probes = proof_probes(job.checkpoint, job.media)
    job.observe(
        Announcement(text=f"proving on {counted(probes.num_probes, 'new probe')}: the original")
    )
    tied = as_config_says(job.checkpoint)
    readings = [_reading(job, job.checkpoint, probes, is_tied=False)]
    if tied is not None:
        readings.append(_reading(job, tied, probes, is_tied=True))
    runs = (
        run
        for reading in readings
        for run in _proof_runs("original", reading.report, reading.logits, is_tied=reading.is_tied)
    )
    return OriginalRuns(probes=probes, readings=tuple(readings), runs=tuple(runs))


def _reading(job: Job, checkpoint: Checkpoint, probes: ProofProbes, *, is_tied: bool) -> Reading:
    logits = LogitsWitness(keeps=True)
    report = scanned(job, checkpoint, dtypes=tuple(Dtype), witness=logits, probes=probes)
    return Reading(is_tied=is_tied, report=report, logits=logits)


def prove(
    folder: Path, original: OriginalRuns, choice: Choice, rounded: Rounded, job: Job
) -> Proof:
    """Runs the checkpoint in ``folder`` on the same probes.

    Args:
        folder: a rescaled checkpoint.
        original: what it is compared with.
        choice: the exponents it was rescaled by.
        rounded: what became of its values when it was written.
        job: the original and the options.
    """
    dtype = job.request.dtype
    job.observe(Announcement(text="proving: the fixed checkpoint"))
    fixed = open_checkpoint(
        str(folder), trust_remote_code=job.request.trust_remote_code, observe=job.observe
    )
    runs = list(original.runs)
    reports = []
    for reading in original.readings:
        checkpoint = as_config_says(fixed) or fixed if reading.is_tied else fixed
        logits = LogitsWitness(kept=reading.logits.kept)
        report = scanned(
            job,
            checkpoint,
            dtypes=tuple(Dtype),
            witness=logits,
            probes=original.probes,
        )
        reports.append(report)
        runs += _proof_runs("fixed", report, logits, is_tied=reading.is_tied)
    against = (
        *diverged_copies(job.checkpoint, fixed),
        *objections(runs, dtype=dtype, is_exact=choice.is_exact),
    )
    return Proof(
        holds=not against,
        exactness=_exactness(runs, choice),
        objections=against,
        num_tokens=sum(probe.num_tokens for probe in reports[0].probes),
        runs=tuple(runs),
        headroom=_mechanism_headroom(original.report, reports[0], dtype=dtype),
        num_changed=rounded.num_elements,
        num_became_zero=rounded.num_zero,
        num_became_subnormal=rounded.num_subnormal,
    )


def _exactness(runs: Sequence[ProofRun], choice: Choice) -> Exactness:
    exact = [
        run.is_identical for run in runs if run.checkpoint == "fixed" and run.dtype.is_reference
    ]
    if exact and all(exact):
        return Exactness.EXACT
    if choice.broken:
        return Exactness.APPROXIMATE
    return Exactness.EPSILONS if choice.changes_norms else Exactness.ROUNDED


def _mechanism_headroom(
    before: Report, after: Report, *, dtype: Dtype
) -> tuple[MechanismHeadroom, ...]:
    """The least headroom of each mechanism in both reports; the least before comes first."""
    old, new = _least_bits(before, dtype), _least_bits(after, dtype)
    mechanisms = sorted({*old, *new}, key=lambda mechanism: old.get(mechanism, 0.0))
    return tuple(
        MechanismHeadroom(
            mechanism=mechanism, before_bits=old.get(mechanism), after_bits=new.get(mechanism)
        )
        for mechanism in mechanisms
    )


def _least_bits(report: Report, dtype: Dtype) -> dict[str, float]:
    attn = report.model.default_attn_implementation
    least: dict[str, float] = {}
    for row in report.headroom:
        bits = row.headroom_bits.get(dtype)
        if bits is not None and row.attn_implementation in {None, attn}:
            least[row.mechanism] = min(bits, least.get(row.mechanism, bits))
    return least


def _proof_runs(
    checkpoint: str, report: Report, logits: LogitsWitness, *, is_tied: bool
) -> tuple[ProofRun, ...]:
    """A record for each run and each medium: images are no part of the mean over texts."""
    records: list[ProofRun] = []
    for run in report.runs:
        compared = {
            medium: each
            for (dtype, attn, medium), each in logits.compared.items()
            if (dtype, attn) == (run.dtype, run.attn_implementation)
        }
        record = _proof_run(checkpoint, run, is_tied=is_tied)
        records += [
            with_figures(replace(record, medium=medium), each) for medium, each in compared.items()
        ] or [record]
    return tuple(records)


def _proof_run(checkpoint: str, run: Run, *, is_tied: bool) -> ProofRun:
    texts = (generation.text for generation in run.generations if generation.way == GREEDY)
    return ProofRun(
        checkpoint=checkpoint,
        dtype=run.dtype,
        attn_implementation=run.attn_implementation,
        is_tied=is_tied,
        verdict=run.verdict,
        reason=run.reason,
        greedy=next(texts, None),
    )


def with_figures(run: ProofRun, compared: Compared) -> ProofRun:
    """The run with the figures of its logits against the original's."""
    trace, difference = compared.totals.trace, compared.max_difference
    return replace(
        run,
        kl_divergence_mean=compared.kl_divergence,
        kl_divergence_max=None if compared.kl_divergence is None else trace.kl_divergence_max,
        top1_agreement=None if compared.kl_divergence is None else trace.top1_agreement,
        max_logit_difference=difference if isfinite(difference) else None,
        is_identical=compared.is_identical,
    )
