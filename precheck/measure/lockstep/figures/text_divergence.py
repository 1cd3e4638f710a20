"""How far a run's answers are from its reference's, text by text.

**Idea.** One mean over the tokens of all probes says little: on real models a few tokens of odd
texts carry most of it (31 % in one token of 1,024, Qwen2.5-Coder-0.5B). So every probe has a mean
of its own, and the verdict rests on texts as users write them: the median of their means, each
without its worst tokens. Kinds of input that break for reasons of their own (padding, images,
sounds, a user's prompts) have medians of their own, and the worst of these counts. A long text is
judged by the medians of its pieces, of each doubling of the distance from its first token: what is
lost far from it shows in no short text, and only there.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.records.traces import LONG_TEXT_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from precheck.records.traces import Probe

LEFT_OUT = 0.02
"""Share of a text's tokens that is left out, the worst ones; at least one token."""

PIECE_TOKENS = 128
"""Tokens of a long text that are judged together."""

FEWEST_PIECES = 4
"""Of a long text that are judged together: a median of fewer says little."""


@dataclass(slots=True, kw_only=True, eq=False)
class TextDivergence:
    """KL(reference || run) of the tokens of each probe, nats."""

    by_probe: dict[str, tuple[Probe, Tensor]] = field(default_factory=dict)
    """By name: the probe, and its finite tokens' ``(tokens,)`` float64."""

    def add(self, probe: Probe, kl: Tensor) -> None:
        """Adds tokens ``(tokens,)`` float64 of a probe; those that are not finite are left out."""
        _, known = self.by_probe.get(probe.name, (probe, kl[:0]))
        self.by_probe[probe.name] = (probe, torch.cat([known, kl[kl.isfinite()]]))

    def merge(self, other: TextDivergence) -> TextDivergence:
        """The texts of both; of one that both have, ``other`` has the later part."""
        both = TextDivergence(by_probe=dict(self.by_probe))
        for probe, kl in other.by_probe.values():
            both.add(probe, kl)
        return both

    @property
    def means(self) -> dict[str, float | None]:
        """The mean over all tokens of each probe; None for one without a finite token."""
        return {
            name: float(kl.mean()) if kl.numel() else None
            for name, (_, kl) in self.by_probe.items()
        }

    @property
    def verdict(self) -> float | None:
        """What the run is judged by: the worst kind of ordinary text; None without a token.

        Without any ordinary text (a model without a tokenizer), all probes count.
        """
        finite = [
            (probe, kl)
            for probe, kl in self.by_probe.values()
            if kl.numel() and not probe.is_for_range
        ]
        judged = [(probe, kl) for probe, kl in finite if probe.is_judged]
        groups: dict[str, list[float]] = {}
        for probe, kl in judged or finite:
            group = probe.name if probe.is_judged_alone else _medium(probe)
            if probe.num_tokens < LONG_TEXT_TOKENS:
                groups.setdefault(group, []).append(_typical(kl))
                continue
            for octave, pieces in enumerate(_octaves(kl.split(PIECE_TOKENS))):
                groups.setdefault(f"{group}/{octave}", []).extend(map(_typical, pieces))
        return max(map(statistics.median, groups.values()), default=None)


def _octaves(pieces: Sequence[Tensor]) -> list[list[Tensor]]:
    """Pieces of one text by doublings of the distance; the rest belongs to the last of them.

    >>> [len(octave) for octave in _octaves([torch.ones(1)] * 19)]
    [4, 4, 11]
    """
    octaves = [list(pieces[:FEWEST_PIECES])]
    start = FEWEST_PIECES
    while len(pieces) - start >= FEWEST_PIECES:
        octaves.append(list(pieces[start : 2 * start]))
        start *= 2
    octaves[-1] += pieces[start:]
    return octaves


def _medium(probe: Probe) -> str:
    return "text" if probe.kind == "chat" else probe.kind


def _typical(kl: Tensor) -> float:
    """The mean without the worst tokens: one of them can outweigh a thousand others."""
    num_kept = max(1, kl.numel() - math.ceil(LEFT_OUT * kl.numel()))
    return float(kl.sort().values[:num_kept].mean())
