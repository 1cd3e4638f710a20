"""What other weights of the same model cost: both run side by side in float32, on the same tokens.

Idea. Two runs in lockstep, each over its own weights. The second is compared with the first as a
float32 run with another attention would be: errors of every layer, KL divergence of the scores.

Assumptions. Both have the same architecture, so that their units have the same names and widths.
The tokens are those of the first model's tokenizer.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UsageError
from precheck.measure.gathered import Gathered
from precheck.measure.inputs import plan_inputs
from precheck.measure.machine.devices import resolve_device
from precheck.measure.machine.torch_settings import exact_float32
from precheck.measure.memory_budget import memory_budget
from precheck.measure.models.configurations import RunGroup
from precheck.measure.models.paired import PairedModels
from precheck.measure.prepared import prepare
from precheck.measure.probes.builtin import BUILTIN
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.measure.run_waves import run_batches
from precheck.records.outcomes.weights_cost import WeighedModel, WeightsCost
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from precheck.measure.inputs import Inputs
    from precheck.measure.prepared import Prepared
    from precheck.measure.probes.vocabulary import Vocabulary
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import CheckpointSubject


def weigh(
    reference: CheckpointSubject, other: CheckpointSubject, request: Request, *, observe: Observer
) -> WeightsCost:
    """The figures of one checkpoint's weights against another's; not judged yet.

    Args:
        reference: what the other is compared with; its tokenizer makes the tokens.
        other: the same model with other weights.
        request: the dtype is float32; its attention is the reference's default.
        observe: receives progress.

    Raises:
        UsageError: they are not the same model.
        PrecheckError: one of them does not load, or cannot be run.
    """
    device = resolve_device(request.device)
    with exact_float32(), quiet_transformers(), prepare(reference, request, device=device) as own:
        models = other.models(device=device, is_resident=request.is_resident)
        with closing(models):
            run = models.skeleton(Dtype.FLOAT32, own.reference.attn_implementation)
            _check_same(own, models.loading.missing, run.model, other=other.name)
            prepared = replace(
                own,
                models=PairedModels(own.models, models, device=device),
                groups=(
                    RunGroup(reference=own.reference, others=[]),
                    RunGroup(reference=replace(run, has_other_weights=True), others=[]),
                ),
            )
            inputs = plan_inputs(prepared)
            gathered = _gather(prepared, inputs, observe=observe)
    vocabulary = inputs.vocabulary
    _, compared = gathered.merged(prepared.skeletons)
    probes = [probe for batch in inputs.plan.batches for probe in batch.probes]
    own_words = read_vocabulary(other.checkpoint, size=vocabulary.size)
    return WeightsCost(
        reference=_weighed(reference),
        other=_weighed(other),
        num_probes=len(probes),
        num_tokens=sum(probe.num_tokens for probe in probes),
        run=compared.trace(prepared.skeletons[1], device=device),
        retokenised=tuple(_retokenised(vocabulary, own_words)),
        has_no_tokenizer=own_words.tokenizer is None,
    )


def _check_same(own: Prepared, missing: tuple[str, ...], model: nn.Module, *, other: str) -> None:
    ours = {name: tuple(each.shape) for name, each in own.reference.model.named_parameters()}
    theirs = {name: tuple(each.shape) for name, each in model.named_parameters()}
    names = ours.keys() | theirs.keys()
    different = [name for name in names if ours.get(name) != theirs.get(name)]
    absent = sorted({*missing, *own.models.loading.missing})
    if different or absent:
        listing = listed(tuple(sorted(different) or absent))
        why = "have other names or shapes" if different else "are missing in one of them"
        raise UsageError(
            f"not two copies of one model: {own.subject.name!r} and {other!r} ({listing} {why})",
            hint="pass a model and a quantised or fine-tuned copy of it",
        )


def _gather(prepared: Prepared, inputs: Inputs, *, observe: Observer) -> Gathered:
    batches = inputs.plan.batches
    budget = memory_budget(
        prepared.device,
        max_memory=prepared.request.max_memory,
        batches=batches,
        skeletons=prepared.skeletons,
    )
    prepared.models.plan_memory(prepared.layout, limit=budget.limit, used=budget.used)
    observe(Announcement(text=f"running both in float32 on {inputs.plan.num_tokens:,} tokens"))
    gathered = Gathered()
    run_batches(
        prepared,
        inputs,
        range(len(batches)),
        gathered,
        memory_limit=budget.limit,
        observe=observe,
    )
    if gathered.stopped_by is not None:
        raise gathered.stopped_by
    return gathered


def _retokenised(first: Vocabulary, second: Vocabulary) -> Iterator[str]:
    """Built-in texts of which both tokenizers make something else."""
    if first.tokenizer is None or second.tokenizer is None:
        return
    for prompt in BUILTIN:
        if prompt.kind != "chat" and first.encode(prompt) != second.encode(prompt):
            yield prompt.name


def _weighed(subject: CheckpointSubject) -> WeighedModel:
    sizes = subject.tensor_dtypes
    return WeighedModel(
        id=subject.name,
        stored_as=tuple(sorted(sizes, key=lambda name: -sizes[name])),
        size_bytes=subject.stored_bytes,
    )
