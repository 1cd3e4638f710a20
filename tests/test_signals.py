"""Signals that are told twice, and Ctrl-C while a model is copied: ``copyreg`` swallows it."""

from __future__ import annotations

import signal
import threading
from copy import deepcopy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from precheck.measure.models.skeleton import twin
from precheck.signals import ENDING, SAME_SECONDS, deferred_signals, end_once

if TYPE_CHECKING:
    from types import FrameType


class Pressed(type):
    """Its class is sent a signal when ``copyreg`` writes down its slots."""

    sent = signal.SIGINT

    def __setattr__(cls, name: str, value: object) -> None:
        signal.raise_signal(cls.sent)
        super().__setattr__(name, value)


def model_sent(sent: signal.Signals) -> nn.Module:
    class Sent(metaclass=Pressed):
        """A class of its own: the slots are written down once."""

    type.__setattr__(Sent, "sent", sent)
    model = nn.Linear(1, 1)
    setattr(model, "held", Sent())  # noqa: B010  what torch knows no type of
    return model


pytestmark = pytest.mark.usefixtures("ctrl_c")


@pytest.fixture(autouse=True)
def handlers() -> None:
    """As the command line has them; tests/conftest.py puts back what was there."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)


@pytest.mark.parametrize("sent", ENDING)
@pytest.mark.parametrize("first", ENDING)
def test_a_signal_that_is_told_twice_ends_once(
    monkeypatch: pytest.MonkeyPatch, first: signal.Signals, sent: signal.Signals
) -> None:
    now = 1000.0
    monkeypatch.setattr("precheck.signals.time", SimpleNamespace(monotonic=lambda: now))
    end_once()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(first)
    now += SAME_SECONDS
    signal.raise_signal(sent)
    now += 0.1
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(sent)


def test_what_the_shell_had_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_once()
    signal.raise_signal(signal.SIGINT)


def test_only_the_main_thread_hears_signals() -> None:
    thread = threading.Thread(target=end_once)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("sent", ENDING)
def test_python_loses_a_signal_while_it_copies(sent: signal.Signals) -> None:
    deepcopy(model_sent(sent))  # should this raise one day, the deferring can go


@pytest.mark.parametrize("sent", ENDING)
def test_a_signal_while_a_model_is_copied_is_heard(sent: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        twin(model_sent(sent))
    assert [signal.getsignal(each) for each in ENDING] == [signal.default_int_handler] * 3


def test_a_copy_without_a_signal_leaves_the_handlers_as_they_were() -> None:
    twin(nn.Linear(1, 1))
    assert [signal.getsignal(each) for each in ENDING] == [signal.default_int_handler] * 3


def test_the_callers_own_handler_is_told_once() -> None:
    told: list[int] = []

    def tell(number: int, _frame: FrameType | None) -> None:
        told.append(number)

    signal.signal(signal.SIGINT, tell)
    with deferred_signals():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert not told
    assert told == [signal.SIGINT]


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with deferred_signals():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_signal_goes_before_what_else_went_wrong() -> None:
    def fail() -> None:
        with deferred_signals():
            signal.raise_signal(signal.SIGINT)
            raise RuntimeError("of the copy")

    with pytest.raises(KeyboardInterrupt) as raised:
        fail()
    assert isinstance(raised.value.__context__, RuntimeError)


def test_another_thread_copies_too() -> None:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(twin(nn.Linear(1, 1))))
    thread.start()
    thread.join()
    assert isinstance(found[0], nn.Linear)
