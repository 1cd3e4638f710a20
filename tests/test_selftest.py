"""The self-test holds here, and fails on a device that computes wrongly."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

from precheck import cli
from precheck.errors import ExitCode
from precheck.measure.machine.arithmetic_check import check_arithmetic
from precheck.render.screens.selftest import render_selftest
from precheck.selftest import selftest


def failed(device: str = "cpu") -> list[str]:
    """Of what verdicts rest on; this processor may have its peculiarities."""
    return [each.what for each in check_arithmetic(device) if each.is_needed and not each.holds]


def test_it_holds_here() -> None:
    checks = list(selftest("cpu"))
    assert [check for check in checks if check.is_needed and not check.holds] == []
    assert sum("is found" in check.what for check in checks) == 3
    assert "Verdicts can be trusted" in render_selftest(checks, width=80, colour=False)


def broken(function: Any, dtype: torch.dtype) -> Any:
    """The same, giving NaN in one dtype."""

    def run(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        output = function(tensor, *args, **kwargs)
        return output * float("nan") if tensor.dtype is dtype else output

    return run


@pytest.mark.parametrize("name", ["silu", "gelu", "layer_norm", "scaled_dot_product_attention"])
def test_a_kernel_that_gives_nan_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on GPUs of the GTX 16 series (https://github.com/pytorch/pytorch/issues/58123)."""
    monkeypatch.setattr(functional, name, broken(getattr(functional, name), torch.float16))
    assert failed() == ["kernels in float16 give finite results"]


def test_flushed_subnormals_are_a_peculiarity_of_the_device() -> None:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot")
    try:
        checks = list(check_arithmetic("cpu"))
    finally:
        torch.set_flush_denormal(False)
    odd = [check for check in checks if not check.holds]
    assert "float32 subnormal numbers" in [each.what for each in odd]
    assert not any(each.is_needed for each in odd)
    said = render_selftest(checks, width=80, colour=False)
    assert "! marks peculiarities of the device" in said


def test_a_reduction_that_misses_nan_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda tensor: aminmax(tensor.nan_to_num()))
    assert failed() == [
        f"NaN and infinity are detected in {each}" for each in ("float16", "bfloat16", "float32")
    ]


def test_a_precheck_that_does_not_find_planted_faults_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from precheck.measure.blame.second_look import Reexamined, SecondLook  # noqa: PLC0415  torch is there

    look = SecondLook.inspect

    def nothing(self: SecondLook, *args: Any) -> Reexamined:
        return look(self, *args)._replace(producers=())

    monkeypatch.setattr(SecondLook, "inspect", nothing)
    monkeypatch.setattr(sys, "argv", ["precheck", "env", "--selftest", "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.GATE_FAILS
    assert "Do not trust verdicts on this device." in capsys.readouterr().out


def test_a_device_that_is_not_here_is_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["precheck", "env", "--selftest", "--device", "mps"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.USAGE
    assert "device not present" in capsys.readouterr().err
