"""The audit of a whole checkpoint: faults of its tensors, and digests that identify its weights."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.tensor_audit import CHUNK_ELEMENTS, Scratch, TensorAudit, audit_tensor
from precheck.records.report import CheckpointAudit, TensorFault

if TYPE_CHECKING:
    from precheck.checkpoint.weights import Weights


class CheckpointAuditor:
    """Audits the tensors of a checkpoint as they are read.

    Args:
        weights: the checkpoint; its order is the report's.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._audits: dict[str, TensorAudit] = {}
        self._checksums: dict[str, int] = {}
        self._num_read: Counter[str] = Counter()
        self._scratch = Scratch()

    def has(self, name: str) -> bool:
        """Whether a part of this tensor was audited."""
        return name in self._audits

    def add(self, name: str, tensor: torch.Tensor) -> TensorAudit:
        """Audits a tensor, or the rows of it that come next; returns their audit alone."""
        audit = TensorAudit()
        self._checksums[name] = _checksum(tensor, self._checksums.get(name, 0))
        self._num_read[name] += tensor.numel()
        if tensor.is_floating_point():
            audit = audit_tensor(tensor, scratch=self._scratch)
        self._audits[name] = self._audits.get(name, TensorAudit()).merge(audit)
        return audit

    def result(self) -> CheckpointAudit:
        """The audit of what was read; the fields that need a model are left empty."""
        total = TensorAudit()
        nonfinite: list[TensorFault] = []
        out_of_range: list[TensorFault] = []
        for name in self._weights:
            audit = self._audits.get(name, TensorAudit())
            total = total.merge(audit)
            for faults, count in (
                (nonfinite, audit.stats.num_nonfinite),
                (out_of_range, audit.num_float16_inf),
            ):
                if count:
                    abs_max = audit.stats.abs_max
                    faults.append(TensorFault(name=name, num_elements=count, abs_max=abs_max))
        return CheckpointAudit(
            nonfinite=tuple(nonfinite),
            out_of_float16_range=tuple(out_of_range),
            num_elements=total.stats.num_elements,
            num_float16_zero=total.num_float16_zero,
            num_float16_subnormal=total.num_float16_subnormal,
            size_bytes=self._weights.size_bytes,
            digest=self._digest(list(self._weights)),
            digests=self._digests(),
        )

    def _digest(self, names: list[str]) -> str | None:
        """SHA-256 over name, dtype, shape and checksum; None if not all were read to the end."""
        shapes = {name: tuple(self._weights.shape(name)) for name in names}
        if any(self._num_read[name] != math.prod(shape) for name, shape in shapes.items()):
            return None
        lines = (
            f"{name} {self._weights.dtype(name)} {shape} {self._checksums.get(name, 0):08x}\n"
            for name, shape in sorted(shapes.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _digests(self) -> dict[str, str]:
        layers: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._weights:
            layers[_layer_of(name)].append(name)
        digests = {layer: self._digest(names) for layer, names in layers.items()}
        return {layer: digest[:8] for layer, digest in digests.items() if digest is not None}


def _layer_of(tensor: str) -> str:
    """The repeated block a tensor belongs to, else its module.

    >>> _layer_of("model.layers.3.mlp.up_proj.weight"), _layer_of("lm_head.weight")
    ('model.layers.3', 'lm_head')
    """
    parts = tensor.split(".")
    number = next((index for index, part in enumerate(parts) if part.isdigit()), None)
    return ".".join(parts[: len(parts) - 1 if number is None else number + 1]) or tensor


def _checksum(tensor: torch.Tensor, previous: int) -> int:
    """CRC-32 of a tensor's bytes in the order of its elements, continuing the previous one."""
    checksum = previous
    for chunk in tensor.detach().cpu().contiguous().view(-1).split(CHUNK_ELEMENTS):
        checksum = zlib.crc32(chunk.view(torch.uint8).numpy(), checksum)
    return checksum


def audit_weights(weights: Weights) -> CheckpointAudit:
    """The audit of all tensors, each read once."""
    auditor = CheckpointAuditor(weights)
    for name, tensor in weights.items():
        auditor.add(name, tensor)
    return auditor.result()
