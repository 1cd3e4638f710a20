"""What is known of a checkpoint without running it: config, class, headers and weights.

Of the weights, small tensors alone are read, and a sample of the scales that are not small; or all
of them, where that is asked for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.checkpoint_audit import audit_vectors, audit_weights
from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.triage.ranges import vector_ranges
from precheck.checkpoint.triage.small import find_small_parts
from precheck.errors import UsageError
from precheck.measure.machine.environment import read_environment
from precheck.measure.models.attention import plain_attention
from precheck.measure.models.empty import bare_model, empty_model
from precheck.measure.models.from_pretrained import SEED
from precheck.measure.models.matching import Loading
from precheck.measure.models.model_dtypes import kept_modules
from precheck.measure.models.ties import compared_rows
from precheck.measure.subject.model_facts import model_facts
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, num_bytes
from precheck.records.report import Measurements
from precheck.records.stored import CheckpointAudit, SmallReading
from precheck.records.traces import Coverage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precheck.checkpoint.shards import Span
    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.triage.small import SmallParts
    from precheck.checkpoint.weights import Weights
    from precheck.measure.subject.subject import Subject


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
        if is_full:
            observe(Announcement(text=f"reading {_all_of(subject)} without running it"))
            audit = _read_all(checkpoint, stored)
            found = loading.explained(model, stored, checkpoint.quantization)
        else:
            parts = find_small_parts(stored)
            tied = compared_rows(model, stored)
            _hold(subject, stored, {**parts.spans(stored), **tied}, observe=observe)
            audit = _read_small(stored, parts, tied=tied)
            found = loading.explained(model, stored, checkpoint.quantization, parts=parts)
        audit = found.added_to(audit, model)
        if not checkpoint.is_decoded_by_transformers:
            kept = kept_modules(model)
            audit = replace(
                audit, kept_in_float32=tuple(kept), num_kept_in_float32=sum(kept.values())
            )
        facts = model_facts(
            subject,
            model=model,
            layout=find_architecture(model),
            default_attention=plain_attention(model, checkpoint.attention),
        )
    return Measurements(
        model=facts,
        checkpoint=_with_traffic(audit, checkpoint),
        environment=read_environment(),
        probes=(),
        coverage=Coverage(instrumentation="none: nothing was run"),
        runs=(),
        headroom=(),
        seed=SEED,
        options=options,
        is_static=True,
    )


def _all_of(subject: Subject) -> str:
    return f"{subject.name} ({num_bytes(subject.stored_bytes)})"


def _hold(
    subject: Subject,
    stored: Weights,
    spans: Mapping[str, Sequence[Span]],
    *,
    observe: Observer,
) -> None:
    """Says what is going to be read, and fetches what is on the Hub, several parts at once."""
    remote = None if subject.checkpoint is None else subject.checkpoint.remote
    what = f"parts of {len(spans):,} of {len(stored.stored_dtypes()):,} tensors"
    if remote is None:
        observe(Announcement(text=f"reading {what} of {_all_of(subject)}"))
        return
    plan = remote.plan(spans)
    requests = counted(plan.num_requests, "request")
    size = num_bytes(plan.num_bytes)
    observe(Announcement(text=f"reading {what} of {_all_of(subject)}: {size} in {requests}"))
    remote.hold(spans)


def _read_all(checkpoint: Checkpoint, stored: Weights) -> CheckpointAudit:
    if checkpoint.is_decoded_by_transformers:
        return CheckpointAudit(size_bytes=stored.size_bytes)
    return audit_weights(stored)


def _read_small(
    stored: Weights, parts: SmallParts, *, tied: Mapping[str, Sequence[Span]]
) -> CheckpointAudit:
    auditor = audit_vectors(stored, parts.whole)
    spans = [span for several in parts.spans(stored).values() for span in several]
    return replace(
        auditor.result(),
        size_bytes=stored.size_bytes,
        small=SmallReading(
            num_tensors=len(parts.whole),
            num_bytes=sum(end - start for start, end in spans),
            num_stored=len(stored.stored_dtypes()),
            vectors=vector_ranges(auditor.vectors),
            num_tied_rows=max(map(len, tied.values()), default=0),
        ),
    )


def _with_traffic(audit: CheckpointAudit, checkpoint: Checkpoint) -> CheckpointAudit:
    """The audit, and what was read on the Hub until now."""
    remote = checkpoint.remote
    if audit.small is None or remote is None:
        return audit
    small = replace(audit.small, requests=remote.num_requests, received_bytes=remote.num_bytes)
    return replace(audit, small=small)
