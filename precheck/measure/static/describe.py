"""What is known of a checkpoint without running it: config, class, headers and weights.

Of the weights, small tensors alone are read, and a sample of the scales that are not small; or all
of them, where that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UsageError
from precheck.measure.machine.environment import read_environment
from precheck.measure.models.attention import plain_attention
from precheck.measure.models.empty import bare_model, empty_model
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.models.matching import Loading
from precheck.measure.models.model_dtypes import kept_modules
from precheck.measure.static.triage import read_all, triage
from precheck.measure.subject.model_facts import model_facts
from precheck.records.outcomes.coverage import Coverage
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import num_bytes
from precheck.records.report import Measurements

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.subject.subject import Subject
    from precheck.records.stored import CheckpointAudit


def describe(
    subject: Subject, *, is_full: bool, options: tuple[str, ...], observe: Observer
) -> Measurements:
    """Everything that is known before a forward; no run, no probe.

    Weights that transformers alone can decode are not audited.

    Args:
        subject: a checkpoint.
        is_full: read all weights once, instead of small tensors and samples.
        options: flags of the scan, for the report.
        observe: told what happens while it happens.

    Raises:
        UsageError: a live module, which has nothing stored.
        PrecheckError: the checkpoint does not load.
    """
    checkpoint = subject.checkpoint
    if checkpoint is None:
        raise UsageError(
            "a static check of a live module (expected a checkpoint)",
            hint="save it, or scan it without static=True",
        )
    with quiet_transformers(), checkpoint.open_weights() as stored:
        if checkpoint.is_decoded_by_transformers:
            model, loading = bare_model(checkpoint), Loading()
        else:
            model, loading = empty_model(checkpoint, stored, Dtype.FLOAT16)
        layout = find_architecture(model)
        if is_full:
            size = num_bytes(stored.size_bytes)
            observe(Announcement(text=f"reading {checkpoint.id} ({size}) without running it"))
            found = read_all(checkpoint, stored, model, layout, loading=loading)
        else:
            found = triage(checkpoint, stored, model, layout, loading=loading, observe=observe)
        facts = model_facts(
            subject,
            model=model,
            layout=layout,
            default_attention=plain_attention(model, checkpoint.attention),
        )
    return Measurements(
        model=facts,
        checkpoint=_with_kept_modules(found.audit, checkpoint, model),
        environment=read_environment(),
        probes=(),
        coverage=Coverage(
            instrumentation="none: nothing was run", not_followed=found.followed.failure
        ),
        runs=(),
        headroom=(),
        seed=SEED,
        options=options,
        is_static=True,
        key_values=found.followed.key_values,
        layer_bounds=found.followed.layer_bounds,
    )


def _with_kept_modules(
    audit: CheckpointAudit, checkpoint: Checkpoint, model: nn.Module
) -> CheckpointAudit:
    if checkpoint.is_decoded_by_transformers:
        return audit
    kept = kept_modules(model)
    return replace(audit, kept_in_float32=tuple(kept), num_kept_in_float32=sum(kept.values()))
