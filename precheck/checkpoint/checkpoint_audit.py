"""The audit of a whole checkpoint: faults of its tensors, and digests that identify its weights."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
import xxhash

from precheck.checkpoint.checksum import BLOCK_BYTES, METHOD, Checksum
from precheck.checkpoint.faults.zeros import layer_of, lost_weights
from precheck.checkpoint.tensor_audit import CHUNK_ELEMENTS, Scratch, TensorAudit, audit_chunk
from precheck.records.stored import CheckpointAudit, ScaleAudit, TensorFault

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from precheck.checkpoint.weights import Weights


class CheckpointAuditor:
    """Audits the tensors of a checkpoint as they are read.

    Args:
        weights: the checkpoint; its order is the report's.
    """

    def __init__(self, weights: Weights) -> None:
        self.vectors: dict[str, torch.Tensor] = {}
        """Copies of small tensors of one dimension, biases above all, in float32."""
        self._weights = weights
        self._audits: dict[str, TensorAudit] = {}
        self._checksums: defaultdict[str, Checksum] = defaultdict(Checksum)
        self._num_read: Counter[str] = Counter()

    def has(self, name: str) -> bool:
        """Whether a part of this tensor was audited."""
        return name in self._audits

    def add(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorAudit]:
        """Audits whole tensors by name, blocks of them side by side; returns their audits."""
        blocks = {name: _blocks(tensor) for name, tensor in tensors.items()}
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            audited = {name: pool.map(_digest_block, parts) for name, parts in blocks.items()}
            for name, found in audited.items():
                self._audits[name] = TensorAudit()
                for digest, audit in found:
                    self._checksums[name].extend([digest])
                    self._audits[name] = self._audits[name].merge(audit)
                self._num_read[name] = tensors[name].numel()
                self._keep_vector(name, tensors[name])
        return {name: self._audits[name] for name in tensors}

    def add_part(self, name: str, rows: torch.Tensor) -> None:
        """Audits the rows of a tensor that come next."""
        for block in _blocks(rows):
            audit = _audit_block(block, self._checksums[name])
            self._audits[name] = self._audits.get(name, TensorAudit()).merge(audit)
        self._num_read[name] += rows.numel()
        self._keep_vector(name, rows)

    def _keep_vector(self, name: str, values: torch.Tensor) -> None:
        """Keeps a whole tensor, which may be gone when its data flow is known."""
        is_whole = values.dim() == 1 and (values.numel(),) == tuple(self._weights.shape(name))
        if is_whole and values.is_floating_point() and values.numel() <= CHUNK_ELEMENTS:
            self.vectors[name] = values.detach().cpu().to(torch.float32, copy=True)

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
        zero_scales, lost = self._all_zero()
        return CheckpointAudit(
            all_zero=(*zero_scales, *(name for name in lost if name not in zero_scales)),
            zero_scales=zero_scales,
            nonfinite=tuple(nonfinite),
            out_of_float16_range=tuple(out_of_range),
            num_elements=total.stats.num_elements,
            num_float16_zero=total.num_float16_zero,
            num_float16_subnormal=total.num_float16_subnormal,
            scales=ScaleAudit(faults=tuple(self._weights.faults_of_blocks(nonfinite))),
            stored_types=self._weights.stored_types(),
            size_bytes=self._weights.size_bytes,
            checksum=METHOD,
            digest=self._digest(list(self._weights)),
            digests=self._digests(),
        )

    def _all_zero(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Weights that are zero by their scales, and those that are by accident."""
        shapes = {name: self._weights.shape(name) for name in self._audits}
        zero = [
            name
            for name, shape in shapes.items()
            if self._audits[name].stats.abs_max == 0
            and self._num_read[name] == math.prod(shape)
            and not self._audits[name].stats.num_nonfinite
        ]
        if not zero:
            return (), ()
        floating = {
            name: shape for name, shape in shapes.items() if self._audits[name].stats.num_elements
        }
        return tuple(filter(self._weights.has_zero_scales, zero)), lost_weights(floating, zero)

    def _digest(self, names: list[str]) -> str | None:
        """SHA-256 over name, dtype, shape and checksum; None if not all were read to the end."""
        shapes = {name: tuple(self._weights.shape(name)) for name in names}
        if any(self._num_read[name] != math.prod(shape) for name, shape in shapes.items()):
            return None
        lines = (
            f"{name} {self._weights.dtype(name)} {shape} {self._checksums[name].hexdigest()}\n"
            for name, shape in sorted(shapes.items())
        )
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def _digests(self) -> dict[str, str]:
        layers: defaultdict[str, list[str]] = defaultdict(list)
        for name in self._weights:
            layers[layer_of(name)].append(name)
        digests = {layer: self._digest(names) for layer, names in layers.items()}
        return {layer: digest[:8] for layer, digest in digests.items() if digest is not None}


def _blocks(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The elements in order, in pieces of ``BLOCK_BYTES``."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.split(BLOCK_BYTES // flat.itemsize) if flat.numel() else ()


def _digest_block(block: torch.Tensor) -> tuple[bytes, TensorAudit]:
    """The XXH3 of a block that begins where one of the checksum's does, and its audit."""
    digest = xxhash.xxh3_64()
    audit = _audit_block(block, digest)
    return digest.digest(), audit


def _audit_block(block: torch.Tensor, checksum: Checksum | xxhash.xxh3_64) -> TensorAudit:
    """Adds to the checksum and audits, in one read: each chunk is in the cache by then."""
    audit, scratch = TensorAudit(), Scratch()
    for chunk in block.split(CHUNK_ELEMENTS):
        checksum.update(chunk.view(torch.uint8).numpy().data)
        if chunk.is_floating_point():
            audit = audit.merge(audit_chunk(chunk, scratch))
    return audit


def audit_weights(weights: Weights) -> CheckpointAudit:
    """The audit of all tensors, each read once."""
    auditor = CheckpointAuditor(weights)
    for name, tensor in weights.items():
        auditor.add({name: tensor})
    return auditor.result()


def audit_vectors(weights: Weights, names: Collection[str]) -> CheckpointAuditor:
    """The auditor of some tensors, all of them small; those that are decoded are left out."""
    auditor = CheckpointAuditor(weights)
    for name in names:
        if name in weights and name not in weights.decoded_from:
            auditor.add_part(name, weights[name])
    return auditor
