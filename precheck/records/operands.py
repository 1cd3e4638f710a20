"""What inference engines read into float16 inside, whatever dtype they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from precheck.records.traces import Section


class Operand(StrEnum):
    """A figure that decides whether some kernel leaves float16; in the float32 run, real tokens."""

    LINEAR_INPUT = "linear_input"
    """The largest number that a linear layer reads."""
    SUM_OF_32 = "sum_of_32"
    """The largest sum of 32 neighbours among what a linear layer reads, aligned to 32."""
    ABS_SUM_OF_128 = "abs_sum_of_128"
    """The largest sum of the magnitudes of 128 neighbours, aligned to 128."""
    EXPERT_INPUT = "expert_input"
    """The largest number that a linear layer of an expert reads."""
    LINEAR_OUTPUT = "linear_output"
    """The largest result of a linear layer."""
    BRANCH = "branch"
    """The largest result of the last linear layer before a residual add, experts summed up."""
    NORM_MEAN_SQUARE = "norm_mean_square"
    """The largest mean of squares that a norm of the residual stream forms, of one token."""
    SCORES = "scores"
    """The largest attention score, scaled, before softcap and mask; of batches without padding."""
    QUERY_KEY_PRODUCT = "query_key_product"
    """The largest product of one channel of a query and a key, before scaling; without padding."""
    VALUE_SUM = "value_sum"
    """The largest sum of values that attention forms before it divides by the sum of weights.

    The weights are relative to the largest of a query, so n equal scores sum n values. Fused
    attention: recorded only where the number of keys times the largest value exceeds float16.
    """
    WEIGHT = "weight"
    """The largest stored weight; in the report's ``checkpoint``, not among its operands."""

    def sentence(self, module: str, value: str) -> str:
        """What becomes large where.

        >>> Operand.LINEAR_INPUT.sentence("layers.3.mlp.down_proj", "160,000")
        'layers.3.mlp.down_proj reads up to 160,000'
        """
        return _SENTENCES[self].format(module=module, value=value)

    @property
    def is_recorded(self) -> bool:
        """Whether the report has rows of it."""
        return self is not Operand.WEIGHT


_SENTENCES = {
    Operand.LINEAR_INPUT: "{module} reads up to {value}",
    Operand.SUM_OF_32: "32 neighbours that {module} reads add up to {value}",
    Operand.ABS_SUM_OF_128: "magnitudes of 128 neighbours that {module} reads add up to {value}",
    Operand.EXPERT_INPUT: "experts in {module} read up to {value}",
    Operand.LINEAR_OUTPUT: "{module} gives up to {value}",
    Operand.BRANCH: "{module} adds up to {value} to the residual stream",
    Operand.NORM_MEAN_SQUARE: "{module} takes a mean of squares of {value}",
    Operand.SCORES: "scaled scores in {module} reach {value}",
    Operand.QUERY_KEY_PRODUCT: "one channel of a query and a key in {module} multiply to {value}",
    Operand.VALUE_SUM: "values in {module} add up to {value} before they are divided",
    Operand.WEIGHT: "{module} has a weight of {value}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OperandPeak:
    """How large an operand becomes in one layer."""

    operand: Operand
    layer: int | None
    """None outside of all layers."""
    section: Section
    module: str
    """Where it is largest; an input that several linear layers read is the first one's."""
    value: float
