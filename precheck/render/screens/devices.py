"""Devices: those of this machine, and all known ones."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

from rich.text import Text

from precheck.facts import attention, devices
from precheck.facts.hardware import Float16Sums, Hardware
from precheck.records.quantities import listed, num_bytes
from precheck.render.parts.columns import GAP, Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.words import DASH, shown
from precheck.render.parts.wrapping import labelled

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from precheck.facts.devices import DeviceRow
    from precheck.records.report import Device

_LEAST_ROOM = 20
"""Columns for the names of products, however narrow the terminal is."""

_SUMS = {
    Float16Sums.FLOAT32: "float32",
    Float16Sums.SPLIT_K: "float32; partial sums of blocks may accumulate in float16",
    Float16Sums.UNKNOWN: "not known",
}


def render_devices(present: Sequence[Device], *, width: int, colour: bool) -> str:
    """This machine's devices, and a row for every kind of device that is known."""
    return printed(
        Text("This machine", style="bold"),
        _here(present, width=width),
        Text(),
        Text("Known devices", style="bold"),
        _known(width=width),
        Text(),
        Text("details: precheck gpus NAME; advice for a device: precheck scan MODEL --gpu NAME"),
        width=width,
        colour=colour,
    )


def render_device(device: Hardware, *, width: int, colour: bool) -> str:
    """Everything known about one device, with its sources."""
    fp8 = "not known" if device.fp8 is None else "native" if device.fp8 else "no"
    rows = [
        ("device", shown(device.name)),
        ("kind", f"{device.kind}, {device.architecture}"),
        ("capability", device.compute_capability or DASH),
        ("memory", DASH if device.memory_bytes is None else num_bytes(device.memory_bytes)),
        ("float16", device.float16.value),
        ("bfloat16", device.bfloat16.value),
        ("fp8", fp8),
        ("slower than float32", ", ".join(device.slow) or DASH),
        ("float32 costs", _cost(device)),
        ("float16 products", f"accumulate in {_SUMS[device.float16_sums]}"),
        ("attention", _attention(device)),
        ("confidence", device.confidence.value),
        *(("assumed", shown(assumption)) for assumption in device.assumptions),
        *(("source" if not number else "", source) for number, source in enumerate(device.sources)),
    ]
    lines = labelled((Text(label, style="dim"), Text(text)) for label, text in rows)
    return printed(*lines, width=width, colour=colour)


def _here(present: Sequence[Device], *, width: int) -> Table:
    hardware = [devices.of(device) for device in present]

    def column(header: str, cells: list[str], *, rank: int = 0) -> Column:
        return Column(
            header=header, cells=[Text(shown(cell)) for cell in cells], rank=rank, justify="left"
        )

    return table(
        (
            column("device", [device.name for device in present]),
            column("capability", [device.compute_capability or DASH for device in present]),
            column("float16", [device.float16.value for device in hardware]),
            column("bfloat16", [device.bfloat16.value for device in hardware]),
            column("memory", [_size(device.memory_bytes) for device in present]),
            column("free", [_size(device.memory_free_bytes) for device in present], rank=1),
            column("driver", [device.driver or DASH for device in present], rank=2),
            column("torch", ["yes" if device.is_usable else "cannot use it" for device in present]),
            column("treated as", [device.architecture for device in hardware], rank=3),
        ),
        width=width,
    )


def _known(*, width: int) -> Table:
    rows = devices.table().device

    def column(header: str, cells: list[str], *, rank: int = 0) -> Column:
        return Column(
            header=header, cells=[Text(cell) for cell in cells], rank=rank, justify="left"
        )

    columns = (
        column("id", [row.id for row in rows]),
        column("float16", [row.float16.value for row in rows]),
        column("bfloat16", [row.bfloat16.value for row in rows]),
        column("fp8", ["yes" if row.fp8 else "no" for row in rows], rank=2),
        column("FlashAttention", [_versions(row) for row in rows], rank=1),
    )
    room = max(_LEAST_ROOM, width - GAP - sum(column.width + GAP for column in columns))
    names = [_products(row, room=room) for row in rows]
    return table((*columns, column("products", names)), width=width)


def _versions(row: DeviceRow) -> str:
    """Versions with kernels for it; a question mark where that is not known."""
    device = devices.find(row.id)
    versions = []
    for implementation in attention.table().implementation:
        runs = implementation.runs_on(device)
        if implementation.version and runs is not False:
            versions.append(f"{implementation.version}{'' if runs else '?'}")
    return " ".join(versions) or DASH


def _products(row: DeviceRow, *, room: int) -> str:
    """As many names as there is room for, and how many more there are."""
    names = [product.name for product in row.products] or [row.architecture]
    for most in range(len(names), 0, -1):
        said = listed(tuple(names), most=most)
        if len(said) <= room:
            return said
    return shorten(names[0], room, placeholder="\N{HORIZONTAL ELLIPSIS}")


def _attention(device: Hardware) -> str:
    names = [
        f"{implementation.name}{'' if implementation.runs_on(device) else ' (not known)'}"
        for implementation in attention.table().implementation
        if implementation.runs_on(device) is not False
    ]
    return ", ".join(names)


def _cost(device: Hardware) -> str:
    if device.float32_cost is None:
        return "not known"
    return f"up to {device.float32_cost:g} times the time of 16-bit products, twice the memory"


def _size(size: int | None) -> str:
    return DASH if size is None else num_bytes(size)
