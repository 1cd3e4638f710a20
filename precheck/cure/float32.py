"""The smallest set of modules that has to stay in float32, as a recipe for ``precheck.apply``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.cure.job import scanned
from precheck.cure.objections import is_close, objections
from precheck.cure.proof import with_figures
from precheck.records.finding import Verdict
from precheck.records.fix import Exactness, Float32Recipe, Proof, ProofRun, Remedy
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.cure.job import Job
    from precheck.cure.proof import Original
    from precheck.measure.lockstep.witness import Compared
    from precheck.records.fix import Fix

RECIPE_FILE = "precheck-recipe.json"


def in_float32(refused: Fix, job: Job, *, known: Callable[[], Original]) -> Fix:
    """The recipe, proved and written; ``refused`` itself where nothing was found.

    Args:
        refused: what came of rescaling.
        job: the checkpoint.
        known: what the original does on the probes of the proof.

    Raises:
        MemoryExhaustedError: the model does not fit into memory in 16 bits.
    """
    from precheck.cure.mixed_model import MixedModel
    from precheck.measure.lockstep.witness import LogitsWitness
    from precheck.measure.machine.devices import resolve_device

    job.observe(Announcement(text="looking for modules that have to stay in float32"))
    asked = LogitsWitness(keeps=True)
    scanned(job, job.checkpoint, dtypes=(Dtype.FLOAT32,), witness=asked)
    model = MixedModel(
        job.checkpoint,
        dtype=refused.dtype,
        attn_implementation=job.attn_implementation,
        device=resolve_device(job.request.device),
    )
    modules = model.smallest(
        asked.kept.values(), is_good=lambda found: is_close(found.kl_divergence)
    )
    if modules is None:
        return refused
    if not modules:
        sentence = f"it runs in {refused.dtype} as it is, and nothing exact gives it more room"
        return replace(refused, remedy=Remedy.NOTHING, sentence=sentence)
    recipe = Float32Recipe(
        model=refused.model,
        dtype=refused.dtype,
        attn_implementation=job.attn_implementation,
        modules=tuple(each for each in model.sizes if each in modules),
        num_bytes=2 * sum(model.sizes[each] for each in modules),
    )
    found = replace(
        refused,
        remedy=Remedy.FLOAT32_MODULES,
        recipe=recipe,
        factors=(),
        settings=(),
        proof=None,
        reasons=(f"{refused.sentence}:", *refused.reasons),
    )
    if job.request.is_dry_run:
        return replace(found, sentence=f"{_kept(recipe)}; nothing was written (--dry-run)")
    before = known()
    proof = _proof(model.compared(modules, before.logits.kept.values()), before, recipe)
    if not proof.holds:
        sentence = "nothing was found that holds on other probes too"
        return replace(found, remedy=Remedy.NONE, proof=proof, sentence=sentence)
    _write(recipe, job)
    return replace(found, proof=proof, sentence=f"{_kept(recipe)}: {job.output / RECIPE_FILE}")


def _kept(recipe: Float32Recipe) -> str:
    return (
        f"runs in {recipe.dtype} with {counted(len(recipe.modules), 'module')} in float32 "
        f"({num_bytes(recipe.num_bytes)} more)"
    )


def _proof(compared: Compared | None, known: Original, recipe: Float32Recipe) -> Proof:
    kl = None if compared is None else compared.kl_divergence
    run = ProofRun(
        checkpoint="fixed",
        dtype=recipe.dtype,
        attn_implementation=recipe.attn_implementation,
        verdict=Verdict.SAFE if is_close(kl) else Verdict.DEGRADED,
    )
    runs = (*known.runs, run if compared is None else with_figures(run, compared))
    found = objections(runs, dtype=recipe.dtype)
    return Proof(
        holds=not found,
        exactness=Exactness.ROUNDED,
        objections=found,
        num_tokens=sum(each.num_tokens for each in known.report.probes),
        runs=runs,
    )


def _write(recipe: Float32Recipe, job: Job) -> None:
    from precheck.checkpoint.rewriting import unfinished, write_json

    with unfinished(job.output, overwrite=job.request.overwrite) as made:
        write_json(made.folder / RECIPE_FILE, recipe.to_dict())
        made.take_place()
