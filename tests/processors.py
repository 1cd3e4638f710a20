"""Runs the tests as several processors see them, one after the other: ``make test-processors``.

Two things depend on the processor. Which kernels run: ``ATEN_CPU_CAPABILITY`` limits those of
torch, ``ONEDNN_MAX_CPU_ISA`` and ``MKL_*`` those of the libraries that it multiplies with. And what
precheck is told of it, which decides how it multiplies 16-bit numbers: ``PRECHECK_TEST_CPU``. Each
pair of the two is tried. What this processor has no instructions for is skipped, and counted.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock
from xml.etree.ElementTree import parse

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PYTEST = ("-m", "pytest", "-q", "-n", "logical", "--dist", "loadfile", "-m", "not slow")
THREADS = {1: "one-thread", 2: "two-threads"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """The newest kernels that may run."""

    limits: Mapping[str, str]
    needs: frozenset[str] = frozenset()
    """Instruction sets, as torch names them; without them these would be older kernels."""


def _limits(aten: str, onednn: str, **mkl: str) -> dict[str, str]:
    return {"ATEN_CPU_CAPABILITY": aten, "ONEDNN_MAX_CPU_ISA": onednn} | mkl


AVX512 = frozenset({"avx512_f", "avx512_bw", "avx512_dq", "avx512_vl"})
AVX512_FP16 = AVX512 | {"avx512_bf16", "avx512_fp16"}
KERNELS = {
    # float32 products of MKL in another order, on every processor
    "default": Kernels(limits=_limits("default", "AVX2", MKL_CBWR="COMPATIBLE")),
    "avx2": Kernels(
        limits=_limits("avx2", "AVX2", MKL_ENABLE_INSTRUCTIONS="AVX2"),
        needs=frozenset({"avx2", "fma3"}),
    ),
    "avx512": Kernels(
        limits=_limits("avx512", "AVX512_CORE", MKL_ENABLE_INSTRUCTIONS="AVX512"), needs=AVX512
    ),
    "avx512_bf16": Kernels(
        limits=_limits("avx512", "AVX512_CORE_BF16"), needs=AVX512 | {"avx512_bf16"}
    ),
    "avx512_fp16": Kernels(limits=_limits("avx512", "AVX512_CORE_FP16"), needs=AVX512_FP16),
    "amx": Kernels(
        limits=_limits("avx512", "AVX512_CORE_AMX"),
        needs=AVX512_FP16 | {"amx_tile", "amx_bf16"},
    ),
}
"""By the newest that they use; a processor that is limited so computes as an older one would.

**Source**: https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
"""

_SETS = ("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_fp16")


def _processor(*has: str) -> dict[str, bool | str]:
    return {"architecture": "x86_64"} | {each: each in has for each in _SETS}


TOLD: dict[str, dict[str, bool | str]] = {
    "nothing": {},  # every product is native
    "avx2": _processor("avx2"),
    "avx512_bf16": _processor("avx2", "avx512_f", "avx512_bf16"),
    "avx512_fp16": _processor("avx2", "avx512_f", "avx512_bf16", "avx512_fp16"),
    "amx": _processor("avx2", "avx512_f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
}
"""What ``torch.cpu.get_capabilities`` would say, by the values of ``PRECHECK_TEST_CPU``."""


@contextmanager
def told(name: str) -> Iterator[None]:
    """Inside, precheck is told of this processor and not of the one that is there."""
    if name not in TOLD:
        raise ValueError(f"unknown PRECHECK_TEST_CPU: {name} (expected one of {', '.join(TOLD)})")
    with mock.patch(
        "precheck.measure.machine.arithmetic.cpu_capabilities", return_value=TOLD[name]
    ):
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run of the tests."""

    kernels: str
    told: str
    threads: int

    @property
    def name(self) -> str:
        """``avx2-one-thread`` is the whole of a processor: its kernels, and told what it is."""
        parts = [self.kernels, *([] if self.told == self.kernels else ["told", self.told])]
        return "-".join([*parts, THREADS[self.threads]])

    @property
    def environment(self) -> dict[str, str]:
        """What the tests are started with."""
        own = {"PRECHECK_TEST_CPU": self.told, "PRECHECK_TEST_THREADS": str(self.threads)}
        # threads that wait would else keep the processor from the tests beside them
        return {**KERNELS[self.kernels].limits, **own, "OMP_WAIT_POLICY": "PASSIVE"}

    def lacking(self, known: Mapping[str, object]) -> list[str]:
        """The instruction sets that it needs and a processor has not."""
        return sorted(need for need in KERNELS[self.kernels].needs if not known.get(need))


SETTINGS = tuple(
    Setting(kernels=kernels, told=told, threads=threads)
    for threads in THREADS
    for kernels in KERNELS
    for told in TOLD
    # the order of a sum depends on the threads, and what precheck is told does not
    if threads == 1 or told in {"nothing", kernels}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a setting."""

    setting: Setting
    lacking: list[str] = field(default_factory=list)
    """Not tried, because this processor has no such instructions."""
    code: int = 0
    """Of pytest."""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def row(self) -> str:
        """A line of the table."""
        if self.lacking:
            return f"{self.setting.name:36}  skipped: no {', '.join(self.lacking)} here"
        numbers = f"{self.passed:6} {self.failed:6} {self.skipped:7} {self.seconds:7.0f}"
        odd = self.code and not self.failed
        return f"{self.setting.name:36} {numbers}{f'  pytest ended with {self.code}' * bool(odd)}"


HEAD = f"{'setting':36} {'passed':>6} {'failed':>6} {'skipped':>7} {'seconds':>7}"


def tried(setting: Setting, arguments: list[str]) -> Outcome:
    """The tests under a setting, in a process of their own: the variables are read once."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        ran = subprocess.run(  # noqa: S603  our own tests
            [sys.executable, *PYTEST, f"--junitxml={results}", *arguments],
            env=os.environ | setting.environment,
            check=False,
        )
        passed, failed, skipped = counts(results) if results.exists() else (0, 0, 0)
    return Outcome(
        setting=setting,
        code=ran.returncode,
        passed=passed,
        failed=failed,
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def counts(results: Path) -> tuple[int, int, int]:
    """Passed, failed and skipped tests in what pytest wrote."""
    (suite,) = parse(results).getroot().iter("testsuite")  # noqa: S314  pytest's own
    number = {each: int(suite.attrib[each]) for each in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    return number["tests"] - failed - number["skipped"], failed, number["skipped"]


def capabilities() -> dict[str, object]:
    """What this processor has; nothing where torch cannot tell."""
    read = getattr(torch.cpu, "get_capabilities", dict)  # since torch 2.11
    return dict(read())


def chosen(patterns: list[str]) -> list[Setting]:
    """The settings of these names; ``avx2-*`` is several."""
    found = [
        each
        for each in SETTINGS
        if not patterns or any(fnmatch.fnmatchcase(each.name, pattern) for pattern in patterns)
    ]
    if not found:
        names = "\n  ".join(each.name for each in SETTINGS)
        raise SystemExit(f"no such setting: {', '.join(patterns)} (expected one of)\n  {names}")
    return found


def main() -> None:
    """Try all, or those that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="SETTING")
    parser.add_argument("pytest", nargs="*", help="after --, options of pytest")
    options = parser.parse_args()
    known = capabilities()
    outcomes = []
    for setting in chosen(options.only):
        lacking = setting.lacking(known)
        if lacking:
            outcomes.append(Outcome(setting=setting, lacking=lacking))
            continue
        shown = " ".join(f"{name}={value}" for name, value in setting.environment.items())
        say(f"\n{setting.name}: {shown}")
        outcomes.append(tried(setting, options.pytest))
    failed = [outcome for outcome in outcomes if outcome.code]
    num_skipped = sum(bool(outcome.lacking) for outcome in outcomes)
    say(f"\nOn {known.get('cpu_name') or platform.machine()}, torch {torch.__version__}\n{HEAD}")
    for outcome in outcomes:
        say(outcome.row)
    say(
        f"{len(outcomes)} settings: {len(outcomes) - len(failed) - num_skipped} passed, "
        f"{len(failed)} failed, {num_skipped} skipped"
    )
    sys.exit(bool(failed))


def say(text: str) -> None:
    """At once, so that it stands before what pytest prints."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
