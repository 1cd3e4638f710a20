"""The fewest and smallest powers of two that do, or what stands in the way."""

from __future__ import annotations

import pytest

from precheck.cure.scales.forms import (
    Equation,
    Form,
    Kind,
    Reason,
    ScaledResult,
    Scales,
    Unknown,
)
from precheck.cure.scales.solve import Choice, choose

LIMIT = 65504.0
UP, DOWN, STREAM, NORM = (
    Unknown(kind=Kind.WEIGHT, name=name) for name in ("up", "down", "stream", "norm")
)
SHIFTED = Unknown(kind=Kind.SHIFTED_WEIGHT, name="one_plus", shift=1.0)
EPSILON = Unknown(kind=Kind.SETTING, name="rms_norm_eps")


def zero(form: Form, reason: Reason = Reason.EQUAL) -> Equation:
    return Equation(form=form, reason=reason, module="m", op="aten.op", source="f.py:1")


def result(name: str, form: Form) -> ScaledResult:
    return ScaledResult(form=form, key=(name, "aten.mm", 0), source="f.py:2")


def chosen(
    *equations: Equation,
    results: dict[str, tuple[Form, float]],
    headroom_bits: float = 2.0,
    may_break: bool = False,
) -> Choice:
    return choose(
        Scales(
            equations=equations,
            results=tuple(result(name, form) for name, (form, _) in results.items()),
        ),
        peaks={(name, "aten.mm", 0): peak for name, (_, peak) in results.items()},
        limit=LIMIT,
        headroom_bits=headroom_bits,
        may_break=may_break,
    )


@pytest.mark.parametrize(
    ("peak", "bits", "power"),
    [(1000.0, 2.0, 0), (40_000.0, 0.5, 0), (40_000.0, 2.0, -2), (65_504.0, 0.0, 0), (2e5, 2.0, -4)],
)
def test_no_smaller_power_would_do(peak: float, bits: float, power: int) -> None:
    choice = chosen(
        zero(Form.of(UP) + Form.of(DOWN)),
        results={"product": (Form.of(UP), peak)},
        headroom_bits=bits,
    )
    assert choice.exponents == ({UP: power, DOWN: -power} if power else {})
    assert choice.is_exact
    assert all(row.after_bits >= bits for row in choice.headroom)


def test_what_grows_elsewhere_has_to_fit_too() -> None:
    choice = chosen(
        zero(Form.of(UP) + Form.of(DOWN)),
        results={"a": (Form.of(UP), 2e5), "b": (Form.of(DOWN), 30_000.0)},
    )
    # both cannot have two bits: what is missing is shared, and nothing overflows
    assert choice.overflowing == () or min(row.after_bits for row in choice.overflowing) > -3
    assert sum(row.after_bits for row in choice.headroom) == pytest.approx(
        sum(row.before_bits for row in choice.headroom)
    )


def test_an_epsilon_is_scaled_with_its_norm_if_it_can_be() -> None:
    equation = zero(Form.of(STREAM).times(2) - Form.of(EPSILON), Reason.EPSILON)
    choice = chosen(equation, results={"add": (Form.of(STREAM), 2e5)})
    assert choice.exponents == {STREAM: -4, EPSILON: -8}
    assert choice.is_exact


def test_an_epsilon_that_cannot_be_is_left_and_reported() -> None:
    equation = zero(Form.of(STREAM).times(2), Reason.EPSILON)
    choice = chosen(equation, results={"add": (Form.of(STREAM), 2e5)})
    assert (choice.exponents, choice.loose) == ({STREAM: -4}, (equation,))
    assert not choice.is_exact


@pytest.mark.parametrize("reason", [Reason.NOT_LINEAR, Reason.CLAMP, Reason.RESULT])
def test_what_is_pinned_stays_and_is_reported_when_it_may_break(reason: Reason) -> None:
    equation = zero(Form.of(STREAM), reason)
    results = {"add": (Form.of(STREAM), 2e5)}
    choice = chosen(equation, results=results)
    assert (choice.exponents, [row.abs_max for row in choice.overflowing]) == ({}, [2e5])
    broken = chosen(equation, results=results, may_break=True)
    assert (broken.exponents, broken.broken) == ({STREAM: -4}, (equation,))


def test_weights_are_rather_scaled_than_one_plus_a_weight() -> None:
    equation = zero(Form.of(SHIFTED) + Form.of(UP) + Form.of(NORM))
    choice = chosen(equation, results={"add": (Form.of(UP), 2e5)})
    assert choice.exponents == {UP: -4, NORM: 4}


def test_an_operation_that_was_not_measured_by_number_is_taken_for_the_largest() -> None:
    other = ScaledResult(form=Form.of(UP), key=("m", "aten.mm", 7), source="f.py:2")
    choice = choose(
        Scales(equations=(), results=(other,)),
        peaks={("m", "aten.mm", 0): 2e5, ("m", "aten.mm", 1): 10.0},
        limit=LIMIT,
        headroom_bits=2.0,
    )
    assert choice.exponents == {UP: -4}


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    chosen(results={"a": (Form.of(UP), 2e5)})
    assert capfd.readouterr() == ("", "")
