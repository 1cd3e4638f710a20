"""Where a scan ran, as bug reports ask for it, with what they usually omit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.facts import devices
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from precheck.records.report import Device, Environment


def environment_facts(environment: Environment) -> list[tuple[str, str]]:
    """Label and value of each line: what ``transformers env`` prints, and devices in full."""
    return [
        *environment.libraries.items(),
        ("Python", environment.python),
        ("platform", environment.platform),
        ("CPU", f"{environment.cpu}, {counted(environment.num_threads, 'thread')} used"),
        ("memory", num_bytes(environment.memory_bytes)),
        *(("device", device_text(device)) for device in environment.devices),
    ]


def device_text(device: Device) -> str:
    """Name, compute capability, memory, driver, and what a GPU only emulates."""
    parts = [
        device.name,
        device.compute_capability,
        None if device.memory_bytes is None else num_bytes(device.memory_bytes),
        None if device.driver is None else f"driver {device.driver}",
        "bfloat16 only emulated" if devices.of(device).emulates_bfloat16 else None,
        None if device.is_usable else "not usable with the installed torch",
        f"16-bit instructions: {', '.join(device.features)}" if device.features else None,
    ]
    return ", ".join(part for part in parts if part)
