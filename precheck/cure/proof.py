"""The proof of a fix: the original and the fixed checkpoint, on probes not used to choose it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from precheck.checkpoint.source import open_checkpoint
from precheck.cure.held_out import held_out_prompts
from precheck.cure.job import scanned
from precheck.cure.objections import objections
from precheck.measure.lockstep.witness import LogitsWitness
from precheck.records.fix import Exactness, MechanismHeadroom, Proof, ProofRun
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.checkpoint.rewriting import Rounded
    from precheck.cure.job import Job
    from precheck.cure.scales.solve import Choice
    from precheck.measure.lockstep.witness import Compared
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class OriginalRuns:
    """The original's runs on the probes of the proof."""

    prompts: tuple[Prompt, ...]
    report: Report
    logits: LogitsWitness
    """Its float32 logits, with which everything else is compared."""
    runs: tuple[ProofRun, ...]


def run_original(job: Job) -> OriginalRuns:
    """Runs the original in every dtype."""
    prompts = held_out_prompts(job.checkpoint)
    job.observe(Announcement(text=f"proof, on {counted(len(prompts), 'new probe')}: the original"))
    logits = LogitsWitness(keeps=True)
    report = scanned(job, job.checkpoint, dtypes=tuple(Dtype), witness=logits, prompts=prompts)
    runs = _proof_runs("original", report, logits)
    return OriginalRuns(prompts=prompts, report=report, logits=logits, runs=runs)


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
    job.observe(Announcement(text="proof: the fixed checkpoint"))
    logits = LogitsWitness(kept=original.logits.kept)
    report = scanned(
        job,
        open_checkpoint(
            str(folder), trust_remote_code=job.request.trust_remote_code, observe=job.observe
        ),
        dtypes=(dtype, Dtype.FLOAT32),
        witness=logits,
        prompts=original.prompts,
    )
    runs = (*original.runs, *_proof_runs("fixed", report, logits))
    against = objections(runs, dtype=dtype, is_exact=choice.is_exact)
    return Proof(
        holds=not against,
        exactness=_exactness(runs, choice),
        objections=against,
        num_tokens=sum(probe.num_tokens for probe in report.probes),
        runs=runs,
        headroom=_mechanism_headroom(original.report, report, dtype=dtype),
        num_changed=rounded.num_elements,
        num_became_zero=rounded.num_zero,
        num_became_subnormal=rounded.num_subnormal,
    )


def _exactness(runs: tuple[ProofRun, ...], choice: Choice) -> Exactness:
    is_identical = any(
        run.checkpoint == "fixed" and run.dtype.is_reference and run.is_identical for run in runs
    )
    if is_identical:
        return Exactness.EXACT
    if choice.broken:
        return Exactness.APPROXIMATE
    return Exactness.EPSILONS if choice.loose else Exactness.ROUNDED


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


def _proof_runs(checkpoint: str, report: Report, logits: LogitsWitness) -> tuple[ProofRun, ...]:
    return tuple(
        _proof_run(checkpoint, run, logits.compared.get((run.dtype, run.attn_implementation)))
        for run in report.runs
    )


def _proof_run(checkpoint: str, run: Run, compared: Compared | None) -> ProofRun:
    texts = (generation.text for generation in run.generations if generation.way == GREEDY)
    proof_run = ProofRun(
        checkpoint=checkpoint,
        dtype=run.dtype,
        attn_implementation=run.attn_implementation,
        verdict=run.verdict,
        reason=run.reason,
        greedy=next(texts, None),
    )
    return proof_run if compared is None else with_figures(proof_run, compared)


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
