"""Which results a choice of exponents leaves tight, and which equations forbid a better one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.cure.scales.forms import Reason
from precheck.records.outcomes.fix import OpHeadroom
from precheck.records.quantities import listed, magnitude

if TYPE_CHECKING:
    from precheck.cure.scales.solve import Choice

_MOST_RESULTS = 12

_REASONS = {
    Reason.EQUAL: "tensors that are combined there would be scaled by different factors",
    Reason.NOT_LINEAR: (
        "it is read, with no norm in between, by an operation that does not pass a factor on"
    ),
    Reason.CLAMP: "it is clamped to a constant that is not scaled",
    Reason.CONSTANT: "a constant that is not scaled is added to it",
    Reason.EPSILON: "the epsilon of a norm is not scaled",
    Reason.RESULT: "the logits would change",
}


def tight_results(choice: Choice, *, headroom_bits: float) -> tuple[OpHeadroom, ...]:
    """Results with less headroom than requested, before or after; the tightest before first."""
    tight = [row for row in choice.headroom if min(row.before_bits, row.after_bits) < headroom_bits]
    ordered = sorted(tight, key=lambda row: row.before_bits)
    return tuple(
        OpHeadroom(
            module=row.result.key[0],
            op=row.result.key[1],
            source=row.result.source,
            abs_max=row.abs_max,
            before_bits=row.before_bits,
            after_bits=row.after_bits,
        )
        for row in ordered[:_MOST_RESULTS]
    )


def overflow_sentences(choice: Choice) -> tuple[str, ...]:
    """The three results that would overflow most."""
    return tuple(
        f"{row.result.key[0] or 'the model'} ({row.result.key[1]} at {row.result.source}) "
        f"reaches {magnitude(row.abs_max)}"
        for row in sorted(choice.overflowing, key=lambda row: row.after_bits)[:3]
    )


def blocking_equations(choice: Choice) -> tuple[str, ...]:
    """The broken equations as sentences: one for each line of code."""
    modules: dict[tuple[str, str, str], list[str]] = {}
    for equation in choice.broken:
        line = (_REASONS[equation.reason], equation.op, equation.source)
        line_modules = modules.setdefault(line, [])
        if equation.module not in line_modules:
            line_modules.append(equation.module)
    return tuple(
        f"{reason}: {op} at {source}, in {listed(tuple(names), most=1) or 'the model'}"
        for (reason, op, source), names in modules.items()
    )
