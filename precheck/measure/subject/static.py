"""What can be told of a checkpoint without running it: config, class, headers and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.checkpoint_audit import audit_weights
from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.source import Checkpoint
from precheck.errors import UsageError
from precheck.measure.machine.environment import read_environment
from precheck.measure.models.attention import attention_of
from precheck.measure.models.empty import bare_model, empty_model
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.models.model_dtypes import kept_modules
from precheck.measure.subject.subject import model_facts, stored_bytes, tensor_sizes
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import num_bytes
from precheck.records.report import CheckpointAudit, Measurements
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from precheck.measure.subject.subject import Subject


def describe(subject: Subject, *, observe: Observer) -> Measurements:
    """Everything that is known before a forward; no run, no probe.

    Reads the stored weights once, to say which leave float16, and nothing else that is large.
    Weights that transformers alone can decode are not audited.

    Raises:
        UsageError: a live module, which has nothing stored.
        PrecheckError: the checkpoint does not load.
    """
    if not isinstance(subject, Checkpoint):
        raise UsageError(
            "nothing static to tell of a live module (expected a checkpoint)",
            hint="save it, or scan it without static=True",
        )
    size = stored_bytes(subject)
    observe(Announcement(text=f"reading {subject.id} ({num_bytes(size)}), running nothing"))
    is_opaque = subject.quantization is not None and not subject.quantization.is_decoded_here
    with quiet_transformers(), subject.open_weights() as stored:
        audit = CheckpointAudit(size_bytes=size)
        if is_opaque:
            model = bare_model(subject)
        else:
            model, loading = empty_model(subject, stored, Dtype.FLOAT16)
            kept = kept_modules(model)
            audit = replace(
                audit_weights(stored),
                missing=loading.missing,
                unexpected=loading.unexpected,
                mismatched=loading.mismatched,
                kept_in_float32=tuple(kept),
                num_kept_in_float32=sum(kept.values()),
            )
        facts = model_facts(
            subject,
            model=model,
            layout=find_architecture(model),
            sizes=tensor_sizes(subject),
            default_attention=attention_of(model),
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
        is_static=True,
    )
