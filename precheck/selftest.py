"""Whether precheck can be trusted on this machine: planted faults, and what they rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.errors import PrecheckError
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.selftest import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report


class _Planted(NamedTuple):
    """A built-in model, and what a scan has to say of its float16 runs."""

    demo: str
    attn_implementation: str
    module: str
    mechanism: Mechanism


_PLANTED = (
    _Planted("qwen2-eager", "eager", "model.layers.3.self_attn", Mechanism.ATTENTION_SCORES),
    _Planted("llama-product", "sdpa", "model.layers.4.mlp", Mechanism.GATED_PRODUCT),
    _Planted("gemma3-residual", "sdpa", "model.layers.1", Mechanism.RESIDUAL),
)
_HEALTHY = ("qwen2-eager", "sdpa")
"""The same weights where they are sound: nothing may be said."""


def selftest(device: str = "auto") -> Iterator[Check]:
    """Every check, as it is done; seconds in all.

    Args:
        device: where a scan would run.

    Raises:
        UsageError: the device is not here.
    """
    from precheck.measure.machine.arithmetic_check import check_arithmetic
    from precheck.measure.machine.devices import resolve_device

    where = resolve_device(device)
    yield from check_arithmetic(where)
    for each in _PLANTED:
        yield from _planted(each, where)


def _planted(each: _Planted, device: str) -> Iterator[Check]:
    what = f"planted {each.mechanism.replace('_', ' ')} in {each.module} is named"
    try:
        report = scan(f"demo:{each.demo}", device=device, quick=True)
    except PrecheckError as error:
        yield Check(what=what, holds=False, found=error.message)
        return
    found = _said(report, Dtype.FLOAT16, each.attn_implementation)
    expected = f"{each.mechanism.replace('_', ' ')} in {each.module}"
    yield Check(what=what, holds=found == expected, found=found)
    if each.demo == _HEALTHY[0]:
        for dtype in Dtype:
            said = _said(report, dtype, _HEALTHY[1])
            sound = f"nothing is said of the sound model in {dtype}"
            yield Check(what=sound, holds=said == Verdict.SAFE, found=said)


def _said(report: Report, dtype: Dtype, attn_implementation: str) -> str:
    """What a run is said to be, in words."""
    for run in report.runs:
        if (run.dtype, run.requested_attn_implementation) == (dtype, attn_implementation):
            row = run.first_overflow
            if row is None:
                return run.verdict
            return f"{row.mechanism.replace('_', ' ')} in {row.module}"
    return "not run"
