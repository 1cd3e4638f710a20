"""Generates text in every run: what a user would read, and where it diverges or breaks.

Every run calls the model's own ``generate`` in a thread of its own, and all advance unit by unit as
in a scan, so that each weight is read once a token for all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from precheck.measure.lockstep.decoding import Decoding, FixedOrder
from precheck.measure.lockstep.products import ProductEmulation
from precheck.measure.lockstep.turns import advance
from precheck.measure.models.quantized import QuantizedRuns
from precheck.records.traces import Generation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.lockstep.decoding import Decoded
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.probes.batch import Batch


def generate(
    batch: Batch,
    groups: Sequence[RunGroup],
    *,
    num_tokens: int,
    strategies: Sequence[str],
    witness: Witness | None,
    weights: SharedModels,
    layout: Architecture,
    decode: Decode,
) -> list[tuple[Generation, ...]]:
    """What every run writes after one prompt, with each strategy, in the order of the groups.

    Args:
        batch: one probe, on the runs' device.
        groups: runs by attention implementation, the float32 run of each first.
        num_tokens: tokens to write, if none of them ends the text.
        strategies: greedy, sampled.
        witness: is shown the tokens.
        weights: load and free the parameters.
        layout: the model's units.
        decode: token ids to text.

    Raises:
        PrecheckError: the weights cannot be read, or memory ran out.
    """
    skeletons = [skeleton.another() for group in groups for skeleton in group.skeletons]
    products, quantized = ProductEmulation(), QuantizedRuns(layout)
    decodings = [
        Decoding(
            skeleton=skeleton,
            batch=batch,
            num_tokens=num_tokens,
            strategies=strategies,
            layout=layout,
            products=products,
            presence=quantized.presence(skeleton, weights.presence(skeleton)),
        )
        for skeleton in skeletons
    ]
    # sampling seeds torch's own generator; the caller's is left as it was
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        advance([decoding.worker for decoding in decodings], FixedOrder())
    if witness is not None:
        for skeleton, decoding in zip(skeletons, decodings, strict=True):
            for each in decoding.decoded:
                witness.record_text(skeleton, batch, strategy=each.strategy, tokens=each.tokens)
    remaining = iter(decodings)
    return [
        generations
        for group in groups
        for generations in _compared([next(remaining) for _ in group.skeletons], batch, decode)
    ]


def _compared(
    decodings: list[Decoding], batch: Batch, decode: Decode
) -> list[tuple[Generation, ...]]:
    """Every run of a group next to its reference, which is the first."""
    return [
        tuple(
            _generation(decoded, reference, batch, decode)
            for decoded, reference in zip(decoding.decoded, decodings[0].decoded, strict=False)
        )
        for decoding in decodings
    ]


def _generation(decoded: Decoded, reference: Decoded, batch: Batch, decode: Decode) -> Generation:
    name, overflow = batch.probes[0].name, decoded.overflow
    if overflow is not None:
        positions = [(name, position) for position in overflow.first_positions.values()]
        overflow = replace(overflow, probes=(name,), first_positions=dict(positions))
    return Generation(
        probe=name,
        way=decoded.strategy,
        text=decode(decoded.tokens) if decoded.tokens else None,
        num_tokens=len(decoded.tokens),
        first_difference=_first_difference(decoded.tokens, reference.tokens),
        broken_step=decoded.broken_step,
        overflow=overflow,
        error=decoded.error,
    )


def _first_difference(tokens: list[int], reference: list[int]) -> int | None:
    """Index of the first token that differs, or that only one of them has."""
    for index, (token, expected) in enumerate(zip(tokens, reference, strict=False)):
        if token != expected:
            return index
    return None if len(tokens) == len(reference) else min(len(tokens), len(reference))
