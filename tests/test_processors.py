"""The settings of ``make test-processors`` take effect, and what cannot be tried is told."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.measure.machine.arithmetic import arithmetic_of
from precheck.records.precision import Dtype
from tests import processors
from tests.processors import KERNELS, SETTINGS, TOLD, Setting, told

if TYPE_CHECKING:
    from collections.abc import Iterator

CPU = os.environ.get("PRECHECK_TEST_CPU", "nothing")

ARITHMETIC = {
    "nothing": ("native", "native"),
    "avx2": ("float32-rounded", "float32-rounded"),
    "avx512_bf16": ("float32-rounded", "native"),
    "avx512_fp16": ("native", "native"),
    "amx": ("native", "native"),
}
"""Of float16 and of bfloat16."""


def here() -> tuple[str, str]:
    return arithmetic_of(Dtype.FLOAT16, "cpu"), arithmetic_of(Dtype.BFLOAT16, "cpu")


@pytest.mark.parametrize("name", TOLD)
def test_what_precheck_is_told_decides_how_it_multiplies(name: str) -> None:
    with told(name):
        assert here() == ARITHMETIC[name]
    assert here() == ARITHMETIC[CPU]


@pytest.mark.usefixtures("native")
def test_a_test_may_ask_for_native_products_whatever_the_setting() -> None:
    assert here() == ("native", "native")


def test_a_processor_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown PRECHECK_TEST_CPU: z80"), told("z80"):
        pass


def test_the_kernels_and_threads_are_those_of_the_setting() -> None:
    limit = os.environ.get("ATEN_CPU_CAPABILITY")
    assert limit is None or torch.backends.cpu.get_cpu_capability().lower() == limit
    assert torch.get_num_threads() == int(os.environ.get("PRECHECK_TEST_THREADS", "1"))


def test_every_pair_of_kernels_and_what_is_told_is_there() -> None:
    pairs = {(each.kernels, each.told) for each in SETTINGS}
    assert pairs == {(kernels, told) for kernels in KERNELS for told in TOLD}
    assert {each.threads for each in SETTINGS} == {1, 2}
    assert len({each.name for each in SETTINGS}) == len(SETTINGS)


def test_only_kernels_need_instructions() -> None:
    """Precheck can be told of what is not there."""
    amx = Setting(kernels="amx", told="amx", threads=1)
    assert amx.lacking(dict.fromkeys(KERNELS["amx"].needs, True)) == []
    assert amx.lacking(dict.fromkeys(KERNELS["avx512"].needs, True)) == [
        *("amx_bf16", "amx_tile", "avx512_bf16", "avx512_fp16"),
    ]
    assert Setting(kernels="default", told="amx", threads=1).lacking({}) == []


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The environments of what would be run: a test that passes, and one that fails with AVX2."""
    found: list[dict[str, str]] = []

    def run(command: list[str], *, env: dict[str, str], check: bool) -> Any:
        found.append(env)
        (results,) = (each.partition("=")[2] for each in command if each.startswith("--junitxml="))
        fails = int(env["ATEN_CPU_CAPABILITY"] == "avx2")
        with open(results, "w", encoding="utf-8") as file:  # noqa: PTH123  as pytest writes it
            file.write(
                f'<testsuites><testsuite tests="3" failures="{fails}" errors="0" skipped="1"/>'
                "</testsuites>"
            )
        assert not check
        return subprocess.CompletedProcess(command, fails)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(processors, "capabilities", lambda: {"avx2": True, "fma3": True})
    yield found
    assert all({"PATH", "PRECHECK_TEST_CPU"} <= each.keys() for each in found)


def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["processors", *words])
    with pytest.raises(SystemExit) as ended:
        processors.main()
    return ended.value.code, capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--only default-told-amx-one-thread", "1 settings: 1 passed, 0 failed, 0 skipped"),
        ("--only avx2-*", "7 settings: 0 passed, 7 failed, 0 skipped"),
        ("--only amx-one-thread", "1 settings: 0 passed, 0 failed, 1 skipped"),
        ("", "40 settings: 6 passed, 7 failed, 27 skipped"),
    ],
)
def test_what_failed_and_what_was_skipped_is_counted(
    words: str,
    expected: str,
    ran: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ended, shown = table(monkeypatch, capsys, *words.split())
    assert shown.splitlines()[-1] == expected
    assert bool(ended) == (" 0 failed" not in expected)
    reasons = shown.count("skipped: no ")
    assert expected.startswith(f"{len(ran) + reasons} settings")
    assert expected.endswith(f", {reasons} skipped")


def test_a_setting_that_is_not_there_is_told_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = table(monkeypatch, capsys, "--only", "z80")
    assert code.startswith("no such setting: z80 (expected one of)\n  default-told-nothing-one")
