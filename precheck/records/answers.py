"""What a model that generates nothing answers: scores of an input, or an embedding of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precheck.records.quantities import percent


class Pooling(StrEnum):
    """How the hidden states of a text become one embedding."""

    MEAN = "mean"
    CLS = "cls"
    """The first token's."""
    LAST = "lasttoken"
    MAX = "max"


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """What is done with the hidden states of an encoder."""

    pooling: Pooling = Pooling.MEAN
    is_normalised: bool = False
    """In the model's dtype, as sentence-transformers does."""


class AnswerKind(StrEnum):
    """What is compared."""

    SCORES = "scores"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersTrace:
    """One answer for each input, compared with the reference's, without a softmax.

    Over ordinary inputs and the user's own whose answers are finite; over all where those are few.
    """

    kind: AnswerKind
    num_inputs: int
    error: float | None
    """Scores: the root mean square of ``x - r`` over that of the spread of ``r`` across inputs.
    Embeddings: the mean of ``||x - r|| / ||r||``."""
    order_agreement: float | None
    """Scores: the share of pairs of inputs that are in the reference's order, ties left out there.
    Embeddings: the share of inputs whose nearest other input is the reference's."""
    num_distinct: int | None = None
    """Scores: values of the first score that differ, in the run's dtype."""
    reference_num_distinct: int | None = None
    cosine_min: float | None = None
    """Embeddings: the smallest cosine of an embedding and the reference's."""

    @property
    def sentence(self) -> str:
        """The figures in words; empty without any."""
        if self.error is None:
            return ""
        order = ""
        if self.kind is AnswerKind.SCORES:
            if self.order_agreement is not None:
                order = f", {percent(self.order_agreement)} of the pairs in order"
            return (
                f"scores off by {percent(self.error)} of their spread, {self.num_distinct} of "
                f"{self.reference_num_distinct} distinct{order}"
            )
        if self.order_agreement is not None:
            order = f", {percent(self.order_agreement)} with the same nearest neighbour"
        return f"embeddings off by {percent(self.error)}{order}"
