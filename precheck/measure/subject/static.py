"""What is known of a checkpoint without running it: config, class, headers and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.checkpoint_audit import audit_weights
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UsageError
from precheck.measure.machine.environment import read_environment
from precheck.measure.models.attention import plain_attention
from precheck.measure.models.empty import bare_model, empty_model
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.models.matching import Loading
from precheck.measure.models.model_dtypes import kept_modules
from precheck.measure.subject.model_facts import model_facts
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import num_bytes
from precheck.records.report import Measurements
from precheck.records.stored import CheckpointAudit
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.measure.subject.subject import Subject


def describe(subject: Subject, *, options: tuple[str, ...], observe: Observer) -> Measurements:
    """Everything that is known before a forward; no run, no probe.

    Reads the stored weights once, to count those that leave float16, and nothing else that is
    large. Weights that transformers alone can decode are not audited.

    Args:
        subject: a checkpoint.
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
    size = num_bytes(subject.stored_bytes)
    observe(Announcement(text=f"reading {subject.name} ({size}) without running it"))
    with quiet_transformers(), checkpoint.open_weights() as stored:
        if checkpoint.is_decoded_by_transformers:
            model = bare_model(checkpoint)
            found = Loading().explained(model, stored, checkpoint.quantization)
            audit = found.added_to(CheckpointAudit(size_bytes=subject.stored_bytes), model)
        else:
            model, audit = _audited(checkpoint, stored)
        facts = model_facts(
            subject,
            model=model,
            layout=find_architecture(model),
            default_attention=plain_attention(model, checkpoint.attention),
        )
    return Measurements(
        model=facts,
        checkpoint=audit,
        environment=read_environment(),
        probes=(),
        coverage=Coverage(instrumentation="none: nothing was run"),
        runs=(),
        headroom=(),
        seed=SEED,
        options=options,
        is_static=True,
    )


def _audited(checkpoint: Checkpoint, stored: Weights) -> tuple[nn.Module, CheckpointAudit]:
    """The model without its weights, and what the weights are."""
    model, loading = empty_model(checkpoint, stored, Dtype.FLOAT16)
    kept = kept_modules(model)
    explained = loading.explained(model, stored, checkpoint.quantization)
    audit = replace(
        explained.added_to(audit_weights(stored), model),
        kept_in_float32=tuple(kept),
        num_kept_in_float32=sum(kept.values()),
    )
    return model, audit
