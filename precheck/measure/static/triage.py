"""What small tensors tell of a checkpoint: faults, ranges, and what they make of a cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.architecture import token_embedding
from precheck.checkpoint.checkpoint_audit import audit_vectors, audit_weights
from precheck.checkpoint.triage.ranges import vector_ranges
from precheck.checkpoint.triage.small import find_small_parts
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.ties import compared_rows
from precheck.measure.static.data_flow import Followed, follow
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, num_bytes
from precheck.records.stored import CheckpointAudit, SmallReading

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Architecture
    from precheck.checkpoint.shards import Span
    from precheck.checkpoint.source import Checkpoint
    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.matching import Loading


@dataclass(frozen=True, slots=True, kw_only=True)
class Triage:
    """What the stored tensors tell."""

    audit: CheckpointAudit
    followed: Followed


def triage(
    checkpoint: Checkpoint,
    stored: Weights,
    model: nn.Module,
    layout: Architecture,
    *,
    loading: Loading,
    observe: Observer,
) -> Triage:
    """What the small tensors of a checkpoint tell, and a sample of its other scales.

    Args:
        checkpoint: read here; what is on the Hub is read there, several parts at once.
        stored: its tensors.
        model: without its weights.
        layout: the model's units.
        loading: what the checkpoint lacks.
        observe: told what is going to be read.
    """
    parts = find_small_parts(stored)
    tied = compared_rows(model, stored)
    spans = {**parts.spans(stored), **tied}
    _hold(checkpoint, stored, spans, observe=observe)
    auditor = audit_vectors(stored, [name for name in parts.whole if name not in parts.scales])
    explained = loading.explained(model, stored, checkpoint.quantization, parts=parts)
    remote = checkpoint.remote
    read = SmallReading(
        num_tensors=len(parts.whole),
        num_bytes=sum(end - start for several in spans.values() for start, end in several),
        num_stored=len(stored.stored_dtypes()),
        vectors=vector_ranges(auditor.vectors),
        num_tied_rows=max(map(len, tied.values()), default=0),
        requests=None if remote is None else remote.num_requests,
        received_bytes=None if remote is None else remote.num_bytes,
    )
    # what float16 flushes is a share of all weights, and it is not known of these
    found = auditor.result()
    audit = replace(found, small=read, num_float16_zero=0, num_float16_subnormal=0)
    return _told(
        explained.added_to(audit, model),
        model,
        layout,
        vectors=_by_parameter(model, auditor.vectors),
        is_float16=not checkpoint.is_decoded_by_transformers,
    )


def read_all(
    checkpoint: Checkpoint,
    stored: Weights,
    model: nn.Module,
    layout: Architecture,
    *,
    loading: Loading,
) -> Triage:
    """What all tensors of a checkpoint tell, each read once.

    Args:
        checkpoint: where it lies.
        stored: its tensors. Those that transformers alone can decode are not audited.
        model: without its weights.
        layout: the model's units.
        loading: what the checkpoint lacks.
    """
    is_decoded = checkpoint.is_decoded_by_transformers
    audit = CheckpointAudit(size_bytes=stored.size_bytes) if is_decoded else audit_weights(stored)
    explained = loading.explained(model, stored, checkpoint.quantization)
    parts = find_small_parts(stored)
    names = [name for name in parts.whole if name not in parts.scales]
    return _told(
        explained.added_to(audit, model),
        model,
        layout,
        vectors=_by_parameter(model, audit_vectors(stored, names).vectors),
        embedding={} if is_decoded else _embedding(model, stored),
        is_float16=not is_decoded,
    )


def _told(
    audit: CheckpointAudit,
    model: nn.Module,
    layout: Architecture,
    *,
    vectors: Mapping[str, Tensor],
    is_float16: bool,
    embedding: Mapping[str, Tensor] = MappingProxyType({}),
) -> Triage:
    """The audit, and what follows from vectors and the data flow."""
    numbers = {**vectors, **embedding} if is_float16 else {}
    return Triage(audit=audit, followed=follow(model, layout, vectors=vectors, numbers=numbers))


def _embedding(model: nn.Module, stored: Weights) -> dict[str, Tensor]:
    """In place of the table of tokens one of the same shape: of each channel the largest number."""
    module = token_embedding(model)
    weight = getattr(module, "weight", None)
    name = next((name for name, each in model.named_parameters() if each is weight), None)
    for conversion in find_conversions(model, stored):
        if conversion.target == name and conversion.converter is None:
            table = stored[conversion.sources[0]]
            largest = torch.maximum(table.amax(0).abs(), table.amin(0).abs())
            return {name: largest.expand(table.shape)}
    return {}


def _hold(
    checkpoint: Checkpoint,
    stored: Weights,
    spans: Mapping[str, Sequence[Span]],
    *,
    observe: Observer,
) -> None:
    """Says what is going to be read, and fetches what is on the Hub."""
    what = (
        f"reading {len(spans):,} of {len(stored.stored_dtypes()):,} tensors of {checkpoint.id}, "
        "small ones and samples"
    )
    remote = checkpoint.remote
    if remote is None:
        observe(Announcement(text=what))
        return
    plan = remote.plan(spans)
    requests = counted(plan.num_requests, "request")
    observe(Announcement(text=f"{what}: {num_bytes(plan.num_bytes)} in {requests}"))
    remote.hold(spans)


def _by_parameter(model: nn.Module, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Stored vectors by the names that the model gives them."""
    return {
        conversion.target: vectors[conversion.sources[0]]
        for conversion in find_conversions(model, vectors)
        if conversion.converter is None
    }
