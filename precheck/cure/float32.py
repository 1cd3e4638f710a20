"""The smallest set of modules that has to stay in float32, as a recipe for ``precheck.apply``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.output.unfinished import unfinished
from precheck.checkpoint.rewriting import write_json
from precheck.cure.float32_search import MixedModel
from precheck.cure.job import scanned
from precheck.cure.objections import is_close, objections
from precheck.cure.proof import with_figures
from precheck.measure.lockstep.witness import LogitsWitness, medium_in
from precheck.measure.machine.devices import resolve_device
from precheck.records.finding import Verdict
from precheck.records.outcomes.fix import Float32Recipe, Proof, ProofRun, Remedy
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from precheck.cure.job import Job
    from precheck.cure.proof import OriginalRuns
    from precheck.measure.lockstep.witness import Compared
    from precheck.records.outcomes.fix import Fix

RECIPE_FILE = "precheck-recipe.json"


def find_recipe(refused: Fix, job: Job, *, original: Callable[[], OriginalRuns]) -> Fix:
    """Finds the modules, proves the recipe and writes it; ``refused`` itself if there is none.

    Args:
        refused: the record of the rescaling that did not hold.
        job: the checkpoint.
        original: runs the original on the probes of the proof.

    Raises:
        MemoryExhaustedError: the model does not fit into memory in 16 bits.
    """
    job.observe(Announcement(text="looking for modules that have to stay in float32"))
    witness = LogitsWitness(keeps=True)
    scanned(job, job.checkpoint, dtypes=(Dtype.FLOAT32,), witness=witness)
    model = MixedModel(
        job.checkpoint,
        dtype=refused.dtype,
        attn_implementation=job.attn_implementation,
        device=resolve_device(job.request.device),
    )
    modules = model.smallest_float32_set(
        witness.kept.values(), is_good=lambda compared: is_close(compared.kl_divergence)
    )
    if modules is None:
        return refused
    if not modules:
        sentence = f"it runs in {refused.dtype} as it is, and no exact rescaling gives it more"
        return replace(refused, remedy=Remedy.NOTHING, sentence=sentence)
    recipe = Float32Recipe(
        model=refused.model,
        dtype=refused.dtype,
        attn_implementation=job.attn_implementation,
        modules=tuple(name for name in model.sizes if name in modules),
        num_bytes=2 * sum(model.sizes[name] for name in modules),
    )
    return _prove_and_write(_with_recipe(refused, recipe), recipe, model, job, original=original)


def _with_recipe(refused: Fix, recipe: Float32Recipe) -> Fix:
    why = (*refused.reasons, *(refused.proof.objections if refused.proof else ()))
    return replace(
        refused,
        remedy=Remedy.FLOAT32_MODULES,
        recipe=recipe,
        factors=(),
        settings=(),
        proof=None,
        reasons=(f"{refused.sentence}{':' * bool(why)}", *why),
    )


def _prove_and_write(
    plan: Fix,
    recipe: Float32Recipe,
    model: MixedModel,
    job: Job,
    *,
    original: Callable[[], OriginalRuns],
) -> Fix:
    if job.request.is_dry_run:
        sentence = f"would run in {_summary(recipe)}; not proved yet"
        return replace(plan, sentence=sentence)
    before = original()
    media = {medium_in(batch) for batch, _ in before.logits.kept.values()}
    compared = {
        medium: model.compare_logits(recipe.modules, before.logits.kept_of(medium))
        for medium in sorted(media)
    }
    proof = _proof(compared, before, recipe)
    if not proof.holds:
        sentence = "no remedy was found that also works on other probes"
        return replace(plan, remedy=Remedy.NONE, proof=proof, sentence=sentence)
    _write(recipe, job)
    return replace(plan, proof=proof, sentence=f"runs in {_summary(recipe)}")


def _summary(recipe: Float32Recipe) -> str:
    return (
        f"{recipe.dtype} with {counted(len(recipe.modules), 'module')} in float32 "
        f"({num_bytes(recipe.num_bytes)} more)"
    )


def _proof(
    compared: Mapping[str, Compared | None], original: OriginalRuns, recipe: Float32Recipe
) -> Proof:
    """The proof by what was compared for each medium; None where the forward failed."""
    runs = list(original.runs)
    for medium, each in compared.items():
        kl = None if each is None else each.kl_divergence
        run = ProofRun(
            checkpoint="fixed",
            dtype=recipe.dtype,
            attn_implementation=recipe.attn_implementation,
            medium=medium,
            verdict=Verdict.SAFE if is_close(kl) else Verdict.DEGRADED,
        )
        runs.append(run if each is None else with_figures(run, each))
    against = objections(runs, dtype=recipe.dtype)
    return Proof(
        holds=not against,
        exactness=None,
        objections=against,
        num_tokens=sum(probe.num_tokens for probe in original.report.probes),
        runs=tuple(runs),
    )


def _write(recipe: Float32Recipe, job: Job) -> None:
    with unfinished(job.target, overwrite=job.request.overwrite) as draft:
        write_json(draft.folder / RECIPE_FILE, recipe.to_dict())
        draft.take_place()
