"""The fewest and smallest powers of two that do, or what stands in the way."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from precheck.cure.scales.forms import (
    Epsilon,
    Equation,
    Form,
    Kind,
    Reason,
    ScaledResult,
    Scales,
    Unknown,
)
from precheck.cure.scales.solve import Choice, choose
from precheck.cure.scales.weight_ranges import WeightRange
from precheck.measure.watch.peaks import Peaks, Share
from precheck.records.precision import Dtype

LIMITS = Dtype.FLOAT16.limits
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
        peaks=Peaks({(name, "aten.mm", 0): peak for name, (_, peak) in results.items()}),
        limits=LIMITS,
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


@pytest.mark.parametrize(
    ("of_stream", "of_other", "exponents"),
    [
        # the epsilon is nothing beside the stream's variance: it stays as the other norm needs it
        (1e6, 1e-4, {STREAM: -4}),
        # and the other way round
        (1e-4, 1e6, {STREAM: -4, EPSILON: -8}),
    ],
)
def test_an_epsilon_that_two_norms_share_is_what_changes_less(
    of_stream: float, of_other: float, exponents: dict[Unknown, int]
) -> None:
    """Qwen3-Next's gated norm has the epsilon of all others, and no factor on its input."""
    keys = ("norm", "aten.add", 0), ("gated", "aten.add", 0)
    stream, other = (
        replace(zero(form, Reason.EPSILON), epsilon=Epsilon(key=key, value=1e-6))
        for key, form in zip(
            keys,
            (Form.of(STREAM).times(2) - Form.of(EPSILON), Form.of(EPSILON).times(-1)),
            strict=True,
        )
    )
    choice = choose(
        Scales(equations=(stream, other), results=(result("add", Form.of(STREAM)),)),
        peaks=Peaks(
            {("add", "aten.mm", 0): 2e5},
            shares={
                key: Share(total=1e-6 / (variance + 1e-6), count=1)
                for key, variance in zip(keys, (of_stream, of_other), strict=True)
            },
        ),
        limits=LIMITS,
        headroom_bits=2.0,
    )
    assert choice.exponents == exponents
    assert choice.loose == ((other,) if EPSILON in exponents else (stream,))


@pytest.mark.parametrize(("share", "is_left"), [(1e-16, True), (1e-6, False)])
def test_an_epsilon_that_is_nothing_beside_its_variance_costs_nothing(
    share: float, is_left: bool
) -> None:
    """Gemma's norm behind ``down`` takes any factor; else ``1 + w`` would have to be rounded."""
    key = ("norm", "aten.add", 0)
    equation = replace(
        zero(Form.of(DOWN).times(2) + Form.of(SHIFTED).times(2), Reason.EPSILON),
        epsilon=Epsilon(key=key, value=1e-6),
    )
    choice = choose(
        Scales(equations=(equation,), results=(result("down", Form.of(DOWN)),)),
        peaks=Peaks({("down", "aten.mm", 0): 2e5}, shares={key: Share(total=share, count=1)}),
        limits=LIMITS,
        headroom_bits=2.0,
    )
    assert choice.exponents == ({DOWN: -4} if is_left else {DOWN: -4, SHIFTED: 4})
    assert (bool(choice.loose), choice.changes_norms) == (is_left, False)


def test_settings_are_kept_if_asked() -> None:
    equation = zero(Form.of(STREAM).times(2) - Form.of(EPSILON), Reason.EPSILON)
    choice = choose(
        Scales(equations=(equation,), results=(result("add", Form.of(STREAM)),)),
        peaks=Peaks({("add", "aten.mm", 0): 2e5}),
        limits=LIMITS,
        headroom_bits=2.0,
        keeps_settings=True,
    )
    assert (choice.exponents, choice.loose) == ({STREAM: -4}, (equation,))


def weights(abs_max: float, root_mean_square: float) -> WeightRange:
    return WeightRange(abs_max=abs_max, sum_of_squares=root_mean_square**2 * 100, num_elements=100)


@pytest.mark.parametrize(
    ("of_up", "of_down", "power"),
    [
        (weights(1.0, 0.1), weights(1.0, 0.1), -4),
        # what was made small is made large again, further than the headroom asks for
        (weights(2.0**17, 2.0**14), weights(2.0**-15, 2.0**-18), -6),
        # and not so far that other weights become small instead
        (weights(1.0, 2.0**-7), weights(2.0**-15, 2.0**-18), -5),
        # a weight that does not fit is no better than a result
        (weights(2.0**20, 1.0), weights(1.0, 0.1), -5),
    ],
)
def test_weights_have_to_fit_and_to_keep_their_digits(
    of_up: WeightRange, of_down: WeightRange, power: int
) -> None:
    choice = choose(
        Scales(
            equations=(zero(Form.of(UP) + Form.of(DOWN)),),
            results=(result("product", Form.of(UP)),),
        ),
        peaks=Peaks({("product", "aten.mm", 0): 2e5}),
        limits=LIMITS,
        headroom_bits=2.0,
        weights={UP: of_up, DOWN: of_down},
    )
    assert choice.exponents == {UP: power, DOWN: -power}


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


def test_an_operation_without_its_own_peak_has_none() -> None:
    """The largest of its module may be another one's: BLOOM's mask and its residual."""
    other = ScaledResult(form=Form.of(UP), key=("m", "aten.mm", 7), source="f.py:2")
    choice = choose(
        Scales(equations=(), results=(other,)),
        peaks=Peaks({("m", "aten.mm", 0): 2e5, ("m", "aten.mm", 1): 10.0}),
        limits=LIMITS,
        headroom_bits=2.0,
    )
    assert (choice.exponents, choice.headroom) == ({}, ())


def test_a_lane_has_its_own_peak() -> None:
    """Both halves of one product; only the second one is too large."""
    key = ("m", "aten.mm", 0)
    gate, up = (
        ScaledResult(form=form, key=key, source="f.py:2", elements=torch.tensor(elements))
        for form, elements in (
            (Form.of(STREAM), [True, True, False]),
            (Form.of(UP), [False, False, True]),
        )
    )
    choice = choose(
        Scales(
            equations=(zero(Form.of(STREAM)), zero(Form.of(UP) + Form.of(DOWN))),
            results=(gate, up),
        ),
        peaks=Peaks({key: 2e5}, {key: torch.tensor([3.0, 50.0, 2e5])}),
        limits=LIMITS,
        headroom_bits=2.0,
    )
    assert choice.exponents == {UP: -4, DOWN: 4}
    assert [row.abs_max for row in choice.headroom] == [50.0, 2e5]
    assert choice.overflowing == ()


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    chosen(results={"a": (Form.of(UP), 2e5)})
    assert capfd.readouterr() == ("", "")
