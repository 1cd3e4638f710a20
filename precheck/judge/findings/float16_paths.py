"""Findings on engines that compute in float16 inside (PC620, PC621)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts import engines, float16_paths
from precheck.facts.architectures import is_served
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.quantities import magnitude
from precheck.records.sizes import Operand, OperandPeak
from precheck.records.traces import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.facts.float16_paths import Float16Path
    from precheck.judge.evidence import Evidence


class _Reached(NamedTuple):
    """A path, and how large what it narrows becomes."""

    path: Float16Path
    peak: OperandPeak


def leaves_float16(evidence: Evidence) -> Iterator[Finding]:
    """Engines whose newest version narrows something of this model that does not fit."""
    for engine, reached in _by_engine(evidence, is_fixed=False).items():
        yield _finding(engine, reached, code="PC620")


def left_float16_before(evidence: Evidence) -> Iterator[Finding]:
    """Engines of which older versions did."""
    for engine, reached in _by_engine(evidence, is_fixed=True).items():
        yield _finding(engine, reached, code="PC621")


def _by_engine(evidence: Evidence, *, is_fixed: bool) -> dict[str, list[_Reached]]:
    """The paths that are left, by the engine, in the order of the table."""
    peaks = _peaks(evidence)
    found: dict[str, list[_Reached]] = {}
    for path in float16_paths.table().path:
        peak = peaks.get(path.operand)
        if peak is None or path.is_fixed is not is_fixed or not path.is_left_by(peak.value):
            continue
        if _is_taken(path, evidence):
            found.setdefault(path.engine, []).append(_Reached(path, peak))
    return found


def _peaks(evidence: Evidence) -> Mapping[Operand, OperandPeak]:
    """The largest of each operand, over all layers."""
    if evidence.broken_references:
        return {}
    rows = [*evidence.measurements.operands, *_weights(evidence)]
    rows.sort(key=lambda row: row.value)
    return {row.operand: row for row in rows}


def _weights(evidence: Evidence) -> Iterator[OperandPeak]:
    for fault in evidence.measurements.checkpoint.out_of_float16_range:
        if fault.abs_max is not None:
            yield OperandPeak(
                operand=Operand.WEIGHT,
                layer=None,
                section=Section.DECODER,
                module=fault.name,
                value=fault.abs_max,
            )


def _is_taken(path: Float16Path, evidence: Evidence) -> bool:
    """Whether the engine runs such models, on a device that was named or found.

    Without an accelerator nobody knows yet where it will run: the newest versions are told of, and
    what only older ones did is left out.
    """
    ids = {row.name: row.id for row in engines.table().engine}
    if not is_served(ids.get(path.engine, path.engine), evidence.measurements.model.architecture):
        return False
    accelerators = [device for device in evidence.devices if device.kind != "cpu"]
    if not accelerators:
        return not path.is_fixed
    return any(path.is_about(device) for device in accelerators)


def _finding(engine: str, reached: list[_Reached], *, code: str) -> Finding:
    by_peak: dict[OperandPeak, list[Float16Path]] = {}
    for path, peak in reached:
        by_peak.setdefault(peak, []).append(path)
    first = reached[0].peak
    is_fixed = reached[0].path.is_fixed
    subject = f"Older versions of {engine} leave" if is_fixed else f"{engine} leaves"
    said = [
        f"{subject} float16 inside, whatever dtype is requested: {_sentence(first)}.",
        *(f"{_sentence(peak)}." for peak in by_peak if peak is not first),
        *(_where(path) for path, _ in reached),
    ]
    cures = dict.fromkeys(f"{path.cure} ({path.where})" for path, _ in reached)
    return Finding(
        code=code,
        severity=Severity.NOTE if is_fixed else Severity.WARNING,
        confidence=Confidence.PREDICTED,
        layer=first.layer,
        section=first.section,
        module=first.module,
        modules=tuple(dict.fromkeys(peak.module for peak in by_peak)),
        message=" ".join(said),
        advice=f"With {engine}: {'; '.join(cures)}. Or use an engine that is not listed here.",
        engine=engine,
    )


def _sentence(peak: OperandPeak) -> str:
    return peak.operand.sentence(peak.module, magnitude(peak.value))


def _where(path: Float16Path) -> str:
    return (
        f"{path.where}: {path.function} (versions: {path.versions}); the result is {path.effect}."
    )
