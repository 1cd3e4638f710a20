"""The devices that a report is about, as far as dtypes, attention and memory care."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.errors import UsageError
from precheck.facts import devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.facts.hardware import Hardware
    from precheck.records.report import Environment, Report


def found(environment: Environment) -> tuple[Hardware, ...]:
    """The accelerators that were found, one of each kind, or the CPU."""
    present = environment.devices
    kinds = {
        (device.name, device.memory_bytes): device
        for device in reversed(present)
        if device.kind != "cpu"
    }
    accelerators = tuple(devices.of(device) for device in reversed(kinds.values()))
    processors = tuple(devices.of(device) for device in present if device.kind == "cpu")
    return accelerators or processors[:1] or (devices.find("cpu"),)


def targets(report: Report) -> tuple[Hardware, ...]:
    """The devices that were named or found; not the usual GPUs that stand for nobody's.

    A saved report may name one that is not known here: it is left out.
    """
    return tuple(_targets(report))


def _targets(report: Report) -> Iterator[Hardware]:
    present = {device.name: device for device in found(report.environment)}
    usual = {device.name for device in devices.usual_gpus()}
    for recommendation in report.recommendations:
        name = recommendation.target.name
        if name in present:
            yield present[name]
        elif name not in usual:
            try:
                yield devices.find(name)
            except UsageError:
                continue
