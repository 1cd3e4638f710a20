"""Devices by name, by architecture, and as they are found: the rows of ``devices.toml``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import TYPE_CHECKING

from precheck.errors import UsageError, did_you_mean
from precheck.facts.device_names import (
    capability_in,
    capability_numbers,
    memory_in,
    product_key,
)
from precheck.facts.hardware import Float16Sums, Hardware, Support
from precheck.facts.table import read_table
from precheck.records.finding import Confidence
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.records.report import Device

GIB = 1 << 30
ECC_SHARE = 1 / 16
"""What in-band error correction takes of GDDR6."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A product with its sizes of memory."""

    name: str
    memory: tuple[float, ...]
    """GiB, every size it is sold with, smallest first."""
    ecc: bool = False
    """Error correction takes ``ECC_SHARE`` of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """A row of ``devices.toml``, which says what the fields mean."""

    id: str
    kind: str
    architecture: str
    float16: Support
    bfloat16: Support
    fp8: bool
    float16_sums: Float16Sums
    sources: tuple[str, ...]
    float32_cost: float | None = None
    slow: tuple[Dtype, ...] = ()
    features: tuple[str, ...] = ()
    confidence: Confidence = Confidence.DOCUMENTED
    products: tuple[Product, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTable:
    """``devices.toml``."""

    read: str
    sources: dict[str, str]
    device: tuple[DeviceRow, ...]


@cache
def table() -> DeviceTable:
    """All rows."""
    return read_table("devices.toml", DeviceTable)


_ANY_CPU = Hardware(
    name="cpu",
    kind="cpu",
    architecture="any",
    float16=Support.DEPENDS,
    bfloat16=Support.DEPENDS,
    fp8=False,
)
_ANY_MPS = Hardware(
    name="mps",
    kind="mps",
    architecture="any",
    float16=Support.NATIVE,
    bfloat16=Support.DEPENDS,
    fp8=False,
    assumptions=("bfloat16 is native from M3 on; before it Metal computes it in float32",),
)


def find(name: str) -> Hardware:
    """The device called ``name``: a product, ``sm_75``, ``gfx942``, ``cpu`` or ``mps``.

    A product may carry its memory: ``A100 80GB``. An NVIDIA architecture nobody knows yet is
    taken to compute as the newest one known before it.

    >>> find("nvidia-rtx 3090").compute_capability
    'sm_86'
    >>> find("A100 80GB").memory_bytes // GIB
    80

    Raises:
        UsageError: no such device is known; the hint names close ones.
    """
    if name.strip().casefold() in {"cpu", "mps"}:
        return {"cpu": _ANY_CPU, "mps": _ANY_MPS}[name.strip().casefold()]
    for row in table().device:
        if name.strip().casefold() == row.id:
            return _hardware(row, name=row.id)
    if (compute_capability := capability_in(name)) is not None:
        return of_capability(compute_capability)
    sold = _product(name)
    if sold is None:
        raise UsageError(
            f"unknown GPU: {name!r} (expected a name or a compute capability)", hint=_hint(name)
        )
    row, product = sold
    return _with_memory(_hardware(row, name=product.name), product, requested=memory_in(name))


def of(device: Device) -> Hardware:
    """What is known of a device that was found; its own memory counts."""
    hardware = replace(_of(device), memory_bytes=device.memory_bytes)
    if device.is_usable:
        return hardware
    unusable = f"the installed torch cannot use {device.name}: it is built for other devices"
    return replace(hardware, assumptions=(*hardware.assumptions, unusable))


def of_capability(compute_capability: str, *, name: str | None = None) -> Hardware:
    """The NVIDIA GPU of this compute capability, also of one that is not in the table.

    >>> of_capability("sm_75", name="T4").bfloat16
    <Support.EMULATED: 'emulated'>
    >>> of_capability("sm_999").assumptions[0]
    'sm_999 is not in the table: assumed to compute like sm_121, the newest known below it'
    """
    rows = {
        numbers: row
        for row in table().device
        if row.kind == "cuda" and (numbers := capability_numbers(row.id)) is not None
    }
    requested = capability_numbers(compute_capability)
    below = [numbers for numbers in rows if requested is not None and numbers <= requested]
    row = rows[max(below, default=min(rows))]
    label = name or compute_capability
    if row.id == compute_capability:
        return _hardware(row, name=label)
    assumption = (
        f"{compute_capability} is not in the table: assumed to compute like {row.id}, the newest "
        "known below it"
    )
    return replace(
        _hardware(row, name=label),
        compute_capability=compute_capability,
        confidence=Confidence.PREDICTED,
        assumptions=(assumption,),
    )


def usual_gpus() -> tuple[Hardware, Hardware]:
    """The two kinds advised for when no accelerator is here: without bfloat16, and with it."""
    return (
        of_capability("sm_75", name="GPU without bfloat16 (T4)"),
        of_capability("sm_80", name="GPU with bfloat16 (A100, L4)"),
    )


def _of(device: Device) -> Hardware:
    if device.kind == "cuda" and device.compute_capability is not None:
        return of_capability(device.compute_capability, name=device.name)
    if device.kind == "cpu":
        return _processor(frozenset(device.features))
    row = {row.id: row for row in table().device}.get(device.compute_capability or "")
    if row is None and (sold := _product(device.name)) is not None:
        row, _ = sold
    if row is not None:
        return _hardware(row, name=device.name)
    return _ANY_MPS if device.kind == "mps" else _unknown(device)


def _processor(features: frozenset[str]) -> Hardware:
    for row in table().device:
        if row.kind == "cpu" and features.issuperset(row.features):
            return _hardware(row, name="cpu")
    return _ANY_CPU


def _unknown(device: Device) -> Hardware:
    """A device that is in no row: float16 is assumed to be native, bfloat16 not."""
    name = device.compute_capability or device.name
    assumption = (
        f"{name} is not in the table: assumed to have float16 but no bfloat16, as the oldest "
        "devices in use do"
    )
    return Hardware(
        name=device.name,
        kind=device.kind,
        architecture="unknown",
        compute_capability=device.compute_capability,
        float16=Support.NATIVE,
        bfloat16=Support.EMULATED,
        assumptions=(assumption,),
        confidence=Confidence.PREDICTED,
    )


def _hardware(row: DeviceRow, *, name: str) -> Hardware:
    links = table().sources
    return Hardware(
        name=name,
        kind=row.kind,
        architecture=row.architecture,
        compute_capability=row.id if row.id.startswith(("sm_", "gfx")) else None,
        float16=row.float16,
        bfloat16=row.bfloat16,
        fp8=row.fp8,
        slow=row.slow,
        float32_cost=row.float32_cost,
        float16_sums=row.float16_sums,
        confidence=row.confidence,
        sources=tuple(links[name] for name in row.sources),
    )


def _with_memory(device: Hardware, product: Product, *, requested: float | None) -> Hardware:
    """The device with the requested memory, else with the smallest it is sold with."""
    sizes = product.memory
    size = sizes[0] if requested is None else requested
    share = 1 - ECC_SHARE if product.ecc else 1.0
    assumption = None
    if size not in sizes:
        assumption = (
            f"the table has {device.name} with {_sizes(sizes)}, not {size:g}: taken as given"
        )
    elif requested is None and len(sizes) > 1:
        assumption = (
            f"{device.name} is sold with {_sizes(sizes)}: {size:g} is assumed; "
            f'--gpu "{device.name} {sizes[-1]:g}GB" selects the other'
        )
    return replace(
        device,
        memory_bytes=int(size * share * GIB),
        assumptions=() if assumption is None else (assumption,),
    )


def _sizes(sizes: tuple[float, ...]) -> str:
    return " or ".join(f"{size:g}" for size in sizes) + " GiB"


def _product(name: str) -> tuple[DeviceRow, Product] | None:
    key = product_key(name)
    for row in table().device:
        for product in row.products:
            if key and product_key(product.name) == key:
                return row, product
    return None


def _hint(name: str) -> str:
    names = {
        product_key(product.name): product.name
        for row in table().device
        for product in row.products
    }
    close = [names[key] for key in get_close_matches(product_key(name), names, n=3)]
    suggestion = did_you_mean(close)
    return (
        f"{suggestion}precheck gpus lists the known devices; any NVIDIA GPU also by its "
        "capability: --gpu sm_75 (nvidia-smi --query-gpu=compute_cap --format=csv)"
    )
