"""The proof of a fix: the original and what was made of it, on probes not used to make it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING

from precheck.cure.job import scanned
from precheck.cure.objections import mechanism_rooms, objections
from precheck.records.fix import Exactness, Proof, ProofRun
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY

if TYPE_CHECKING:
    from pathlib import Path

    from precheck.checkpoint.rewriting import Rounded
    from precheck.cure.job import Job
    from precheck.cure.scales.solve import Choice
    from precheck.measure.lockstep.witness import Compared, LogitsWitness
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What the original does on the probes of the proof."""

    prompts: tuple[Prompt, ...]
    report: Report
    logits: LogitsWitness
    runs: tuple[ProofRun, ...]


def original(job: Job) -> Original:
    """The original in every dtype; its float32 logits are what everything is compared with."""
    from precheck.cure.held_out import held_out_prompts
    from precheck.measure.lockstep.witness import LogitsWitness

    prompts = held_out_prompts(job.checkpoint)
    job.observe(Announcement(text=f"proof, on {counted(len(prompts), 'new probe')}: the original"))
    kept = LogitsWitness(keeps=True)
    report = scanned(job, job.checkpoint, dtypes=tuple(Dtype), witness=kept, prompts=prompts)
    runs = _runs("original", report, kept)
    return Original(prompts=prompts, report=report, logits=kept, runs=runs)


def prove(folder: Path, known: Original, choice: Choice, rounded: Rounded, job: Job) -> Proof:
    """What the checkpoint in ``folder`` does on the same probes."""
    from precheck.checkpoint.source import open_checkpoint
    from precheck.measure.lockstep.witness import LogitsWitness

    dtype = job.request.dtype
    job.observe(Announcement(text="proof: the fixed checkpoint"))
    against = LogitsWitness(kept=known.logits.kept)
    fixed = scanned(
        job,
        open_checkpoint(
            str(folder), trust_remote_code=job.request.trust_remote_code, observe=job.observe
        ),
        dtypes=(dtype, Dtype.FLOAT32),
        witness=against,
        prompts=known.prompts,
    )
    runs = (*known.runs, *_runs("fixed", fixed, against))
    found = objections(runs, dtype=dtype, is_exact=choice.is_exact)
    return Proof(
        holds=not found,
        exactness=_exactness(runs, choice),
        objections=found,
        num_tokens=sum(each.num_tokens for each in fixed.probes),
        runs=runs,
        headroom=mechanism_rooms(known.report, fixed, dtype=dtype),
        num_changed=rounded.num_elements,
        num_became_zero=rounded.num_zero,
        num_became_subnormal=rounded.num_subnormal,
    )


def _exactness(runs: tuple[ProofRun, ...], choice: Choice) -> Exactness:
    is_same = any(
        each.checkpoint == "fixed" and each.dtype.is_reference and each.is_identical
        for each in runs
    )
    if is_same:
        return Exactness.EXACT
    if choice.broken:
        return Exactness.APPROXIMATE
    return Exactness.EPSILONS if choice.loose else Exactness.ROUNDED


def _runs(which: str, report: Report, witness: LogitsWitness) -> tuple[ProofRun, ...]:
    return tuple(
        _run(which, each, witness.compared.get((each.dtype, each.attn_implementation)))
        for each in report.runs
    )


def _run(which: str, run: Run, compared: Compared | None) -> ProofRun:
    greedy = next((each.text for each in run.generations if each.way == GREEDY), None)
    found = ProofRun(
        checkpoint=which,
        dtype=run.dtype,
        attn_implementation=run.attn_implementation,
        verdict=run.verdict,
        reason=run.reason,
        greedy=greedy,
    )
    return found if compared is None else with_figures(found, compared)


def with_figures(run: ProofRun, compared: Compared) -> ProofRun:
    """The run with what its logits are against the original's."""
    trace, difference = compared.totals.trace, compared.max_difference
    return replace(
        run,
        kl_divergence_mean=compared.kl_divergence,
        kl_divergence_max=None if compared.kl_divergence is None else trace.kl_divergence_max,
        top1_agreement=None if compared.kl_divergence is None else trace.top1_agreement,
        max_logit_difference=difference if isfinite(difference) else None,
        is_identical=compared.is_identical,
    )
