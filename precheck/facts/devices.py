"""Devices by name, by architecture, and as they are found: what they compute and hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

from precheck.errors import UsageError
from precheck.facts.table import read_table
from precheck.records.advice import Target
from precheck.records.finding import Confidence
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from precheck.records.report import Device

GIB = 1 << 30
ECC_SHARE = 1 / 16
"""What in-band error correction takes of GDDR6."""


class Support(StrEnum):
    """How a device computes in a dtype."""

    NATIVE = "native"
    EMULATED = "emulated"
    """Stored in it, computed in float32 or in software."""
    NONE = "none"
    DEPENDS = "depends"
    """Native on some devices of the kind, emulated on others."""


class Float16Sums(StrEnum):
    """What matrix products of float16 are added up in, as torch calls them by default."""

    FLOAT32 = "float32"
    SPLIT_K = "split_k"
    """Float32 inside a tile; partial tiles may be added up in float16."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A thing one can buy."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device as far as dtypes, attention and memory care."""

    name: str
    kind: str
    """``cuda``, ``rocm``, ``mps``, ``xpu``, ``hpu``, ``npu`` or ``cpu``."""
    architecture: str
    compute_capability: str | None = None
    """``sm_75`` and so on, ``gfx942`` for AMD; None elsewhere."""
    float16: Support
    bfloat16: Support
    fp8: bool | None = None
    slow: tuple[Dtype, ...] = ()
    """Dtypes whose matrix products take longer than float32's."""
    float32_cost: float | None = None
    """Peak rate of 16-bit matrix products over that of float32."""
    float16_sums: Float16Sums = Float16Sums.UNKNOWN
    memory_bytes: int | None = None
    assumptions: tuple[str, ...] = ()
    """What is taken for granted, and why."""
    confidence: Confidence = Confidence.DOCUMENTED
    sources: tuple[str, ...] = ()
    """Links, or commands that measure it."""

    @property
    def target(self) -> Target:
        """As the report names it."""
        return Target(
            name=self.name,
            compute_capability=self.compute_capability,
            memory_bytes=self.memory_bytes,
            assumptions=self.assumptions,
        )

    @property
    def capability(self) -> tuple[int, int] | None:
        """Major and minor compute capability; NVIDIA only.

        >>> of_capability("sm_120").capability
        (12, 0)
        """
        return _numbers(self.compute_capability) if self.compute_capability else None

    @property
    def emulates_bfloat16(self) -> bool:
        """Whether it is an accelerator without bfloat16 of its own; a CPU is only slower."""
        return self.bfloat16 is Support.EMULATED and self.kind != "cpu"

    def support(self, dtype: Dtype) -> Support:
        """How it computes in a dtype."""
        return {Dtype.FLOAT16: self.float16, Dtype.BFLOAT16: self.bfloat16}.get(
            dtype, Support.NATIVE
        )


def is_slow(dtype: Dtype, device: Hardware) -> bool:
    """Whether float32 is faster there, or the dtype is only emulated.

    >>> is_slow(Dtype.BFLOAT16, find("T4")), is_slow(Dtype.FLOAT16, find("T4"))
    (True, False)
    """
    is_emulated = dtype is Dtype.BFLOAT16 and device.bfloat16 is Support.EMULATED
    return is_emulated or dtype in device.slow or device.support(dtype) is Support.NONE


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
    if (written := _capability_written(name)) is not None:
        return of_capability(written)
    found = _product(name)
    if found is None:
        raise UsageError(
            f"unknown GPU: {name!r} (expected a name or a compute capability)", hint=_hint(name)
        )
    row, product = found
    return _with_memory(_hardware(row, name=product.name), product, asked=_memory_written(name))


def of(device: Device) -> Hardware:
    """What is known of a device that was found; its own memory counts."""
    found = replace(_of(device), memory_bytes=device.memory_bytes)
    if device.is_usable:
        return found
    unusable = f"the torch that is installed cannot use {device.name}: it is another build"
    return replace(found, assumptions=(*found.assumptions, unusable))


def of_capability(compute_capability: str, *, name: str | None = None) -> Hardware:
    """The NVIDIA GPU of this compute capability, also of one that is not in the table.

    >>> of_capability("sm_75", name="T4").bfloat16
    <Support.EMULATED: 'emulated'>
    >>> of_capability("sm_999").assumptions[0]
    'sm_999 is not in the table: taken to compute as sm_121, the newest known below it'
    """
    known = {
        numbers: row
        for row in table().device
        if row.kind == "cuda" and (numbers := _numbers(row.id)) is not None
    }
    wanted = _numbers(compute_capability)
    below = [numbers for numbers in known if wanted is not None and numbers <= wanted]
    row = known[max(below, default=min(known))]
    label = name or compute_capability
    if row.id == compute_capability:
        return _hardware(row, name=label)
    assumption = (
        f"{compute_capability} is not in the table: taken to compute as {row.id}, the newest known "
        "below it"
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
    known = {row.id: row for row in table().device}.get(device.compute_capability or "")
    found = _product(device.name)
    row = known or (None if found is None else found[0])
    if row is not None:
        return _hardware(row, name=device.name)
    return _ANY_MPS if device.kind == "mps" else _unknown(device)


def _processor(has: frozenset[str]) -> Hardware:
    for row in table().device:
        if row.kind == "cpu" and has.issuperset(row.features):
            return _hardware(row, name="cpu")
    return _ANY_CPU


def _unknown(device: Device) -> Hardware:
    """A device that no row is about: float16 is taken to be native, bfloat16 not to be."""
    what = device.compute_capability or device.name
    assumption = (
        f"{what} is not in the table: taken to have float16 and no bfloat16, which is true of the "
        "least that is in use"
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
        sources=tuple(links[each] for each in row.sources),
    )


def _with_memory(device: Hardware, product: Product, *, asked: float | None) -> Hardware:
    """The device with the memory asked for, else with the least it is sold with."""
    sizes = product.memory
    size = sizes[0] if asked is None else asked
    left = 1 - ECC_SHARE if product.ecc else 1.0
    said = ""
    if size not in sizes:
        said = f"the table knows {device.name} with {_sizes(sizes)}, not {size:g}: as asked"
    elif asked is None and len(sizes) > 1:
        said = (
            f"{device.name} is sold with {_sizes(sizes)}: {size:g} are assumed; "
            f'--gpu "{device.name} {sizes[-1]:g}GB" for the other'
        )
    return replace(device, memory_bytes=int(size * left * GIB), assumptions=(said,) if said else ())


def _sizes(sizes: tuple[float, ...]) -> str:
    return " or ".join(f"{each:g}" for each in sizes) + " GiB"


def _product(name: str) -> tuple[DeviceRow, Product] | None:
    wanted = _key(name)
    for row in table().device:
        for product in row.products:
            if wanted and _key(product.name) == wanted:
                return row, product
    return None


_MEMORY = re.compile(r"(\d+)\s*gi?b", re.IGNORECASE)
_CAPABILITY = re.compile(r"sm_?(\d+)(\d)[af]?", re.IGNORECASE)
_DOTTED = re.compile(r"(\d+)\.(\d)")
_SAID_BESIDE = re.compile(
    r"\b(nvidia|geforce|tesla|amd|intel|huawei|apple|instinct|generation|graphics|blackwell|"
    r"workstation|server|edition|pcie|sxm\d?|hbm\d\w?|oam|gpu)\b"
)
"""Words of makers, boards and memories that stand beside a product's name."""


def _capability_written(name: str) -> str | None:
    found = _CAPABILITY.fullmatch(name.strip()) or _DOTTED.fullmatch(name.strip())
    return f"sm_{found[1]}{found[2]}" if found else None


def _memory_written(name: str) -> float | None:
    found = _MEMORY.search(name)
    return float(found[1]) if found else None


def _key(name: str) -> str:
    words = re.sub(r"[-_/(),]", " ", _MEMORY.sub(" ", name.casefold()))
    return "".join(each for each in _SAID_BESIDE.sub(" ", words) if each.isalnum())


def _numbers(compute_capability: str) -> tuple[int, int] | None:
    found = _CAPABILITY.fullmatch(compute_capability)
    return (int(found[1]), int(found[2])) if found else None


def _hint(name: str) -> str:
    names = {_key(product.name): product.name for row in table().device for product in row.products}
    close = [names[each] for each in get_close_matches(_key(name), names, n=3)]
    like = f"did you mean {' or '.join(close)}? " if close else ""
    return (
        f"{like}precheck gpus lists what is known; any NVIDIA GPU goes by its capability: "
        "--gpu sm_75 (nvidia-smi --query-gpu=compute_cap --format=csv)"
    )
