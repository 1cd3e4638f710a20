"""What all passages of a scan share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.blame.mechanisms import Classifier
    from precheck.measure.bounds.certificates import Certificates
    from precheck.measure.lockstep.symptom import Decode
    from precheck.measure.lockstep.witness import Witness
    from precheck.records.answers import Embedding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassageContext:
    """The same for every run and every batch of a scan."""

    layout: Architecture
    """The model's units."""
    classifier: Classifier
    """Names the mechanism of an overflow."""
    decode: Decode
    """Token ids to text."""
    keeps_entries: bool
    """Keep the arguments of units in which something overflows, for a capsule."""
    generates: bool
    """The model writes text."""
    embedding: Embedding
    """What is done with the hidden states of one that has no head."""
    witness: Witness | None
    """Records what the runs compute."""
    certificates: Certificates | None = None
    """Bound what the runs compute, over all inputs; of the first batch's runs only."""
