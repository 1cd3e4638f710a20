"""Whether precheck can be trusted on this machine: its arithmetic, and planted faults."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.errors import PrecheckError
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.selftest import Check
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.report import Report


class _Planted(NamedTuple):
    """A built-in model, and the fault that a scan has to name in one of its float16 runs."""

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
"""The first of these models in an attention implementation that does not break: all is safe."""


def selftest(device: str = "auto") -> Iterator[Check]:
    """Every check, as soon as it is done; all of them take seconds.

    Args:
        device: where a scan would run.

    Raises:
        UsageError: the device is not here.
    """
    from precheck.measure.machine.arithmetic_check import check_arithmetic
    from precheck.measure.machine.devices import resolve_device

    name = resolve_device(device)
    yield from check_arithmetic(name)
    for fault in _PLANTED:
        yield from _check_named(fault, name)


def _check_named(fault: _Planted, device: str) -> Iterator[Check]:
    expected = f"{fault.mechanism.replace('_', ' ')} in {fault.module}"
    what = f"planted {expected} is found"
    try:
        report = scan(f"demo:{fault.demo}", device=device, quick=True)
    except PrecheckError as error:
        yield Check(what=what, holds=False, found=error.message)
        return
    diagnosis = _diagnosis(report, Dtype.FLOAT16, fault.attn_implementation)
    yield Check(what=what, holds=diagnosis == expected, found=diagnosis)
    if fault.demo == _HEALTHY[0]:
        for dtype in Dtype:
            diagnosis = _diagnosis(report, dtype, _HEALTHY[1])
            what = f"no false alarm on a healthy model ({dtype})"
            yield Check(what=what, holds=diagnosis == Verdict.SAFE, found=diagnosis)


def _diagnosis(report: Report, dtype: Dtype, attn_implementation: str) -> str:
    """The verdict of a run, or which mechanism overflows where."""
    for run in report.runs:
        if (run.dtype, run.requested_attn_implementation) == (dtype, attn_implementation):
            overflow = run.first_overflow
            if overflow is None:
                return run.verdict
            return f"{overflow.mechanism.replace('_', ' ')} in {overflow.module}"
    return "not run"
