"""What a device computes natively: NVIDIA by compute capability, the CPU, Apple's MPS."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from precheck.errors import UsageError
from precheck.records.report import Target

if TYPE_CHECKING:
    from precheck.records.report import Device

CAPABILITY_SOURCE = "https://developer.nvidia.com/cuda-gpus"
FLASH_ATTENTION_SOURCE = "https://github.com/Dao-AILab/flash-attention"
SDPA_SOURCE = (
    "https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/transformers/cuda/"
    "sdp_utils.cpp"
)
MPS_SOURCE = (
    "https://github.com/huggingface/transformers/blob/main/src/transformers/utils/import_utils.py"
)


class Bfloat16(StrEnum):
    """How a device computes in bfloat16."""

    NATIVE = "native"
    EMULATED = "emulated"
    DEPENDS = "depends"
    """Native on some devices of the kind, emulated on others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A device as far as a dtype and an attention implementation care."""

    name: str
    kind: str
    """``cpu``, ``cuda`` or ``mps``."""
    compute_capability: str | None = None
    bfloat16: Bfloat16
    flash_attention_2: bool | None
    """None where it is not known."""
    sdpa_bfloat16: str
    """What ``sdpa`` does with bfloat16."""
    sources: tuple[str, ...]

    @property
    def target(self) -> Target:
        """As the report names it."""
        return Target(name=self.name, compute_capability=self.compute_capability)


_FUSED = "fused kernels (flash, memory-efficient, cuDNN)"
_MATH = "the math kernel, which holds an N x N matrix for every head"
_NVIDIA_SOURCES = (CAPABILITY_SOURCE, FLASH_ATTENTION_SOURCE, SDPA_SOURCE)
_FIRST_WITH_BFLOAT16 = 8

_PRODUCTS = {
    "6.0": "P100",
    "6.1": "P40, P4, GTX 1060, GTX 1070, GTX 1080, GTX 1080 Ti",
    "7.0": "V100, Titan V, GV100",
    "7.5": "T4, RTX 2060, RTX 2070, RTX 2080, RTX 2080 Ti, GTX 1650, GTX 1660, Titan RTX, "
    "RTX 8000, Quadro RTX 8000, Quadro RTX 6000",
    "8.0": "A100, A30",
    "8.6": "A10, A10G, A40, A16, A2, A6000, RTX A6000, RTX A5000, RTX A4000, RTX 3050, RTX 3060, "
    "RTX 3070, RTX 3070 Ti, RTX 3080, RTX 3080 Ti, RTX 3090, RTX 3090 Ti",
    "8.7": "Orin, Jetson Orin",
    "8.9": "L4, L40, L40S, RTX 6000 Ada, RTX 4060, RTX 4060 Ti, RTX 4070, RTX 4070 Ti, RTX 4080, "
    "RTX 4090",
    "9.0": "H100, H200, H800, H20, GH200",
    "10.0": "B200, GB200, B100",
    "10.3": "B300, GB300",
    "11.0": "Jetson T5000, Jetson T4000",
    "12.0": "RTX 5060, RTX 5060 Ti, RTX 5070, RTX 5070 Ti, RTX 5080, RTX 5090, RTX PRO 6000",
    "12.1": "GB10, DGX Spark",
}
"""Products by compute capability. Source: CAPABILITY_SOURCE."""
_FLASH_ATTENTION_2_UNKNOWN = {"11.0"}

CPU = Hardware(
    name="cpu",
    kind="cpu",
    bfloat16=Bfloat16.DEPENDS,
    flash_attention_2=False,
    sdpa_bfloat16="the CPU's flash kernel",
    sources=(FLASH_ATTENTION_SOURCE,),
)
MPS = Hardware(
    name="mps",
    kind="mps",
    bfloat16=Bfloat16.DEPENDS,
    flash_attention_2=False,
    sdpa_bfloat16="Metal's kernel",
    sources=(MPS_SOURCE,),
)


def capability(compute_capability: str, *, name: str | None = None) -> Hardware:
    """The NVIDIA GPU of this compute capability, also of one newer than the table.

    >>> capability("7.5", name="T4").bfloat16
    <Bfloat16.EMULATED: 'emulated'>
    """
    native = int(compute_capability.partition(".")[0]) >= _FIRST_WITH_BFLOAT16
    label = f"sm_{compute_capability.replace('.', '')}"
    unknown = compute_capability in _FLASH_ATTENTION_2_UNKNOWN or (
        native and compute_capability not in _PRODUCTS
    )
    return Hardware(
        name=name or label,
        kind="cuda",
        compute_capability=label,
        bfloat16=Bfloat16.NATIVE if native else Bfloat16.EMULATED,
        flash_attention_2=None if unknown else native,
        sdpa_bfloat16=_FUSED if native else _MATH,
        sources=_NVIDIA_SOURCES,
    )


def usual_gpus() -> tuple[Hardware, Hardware]:
    """The two rows advised for when no accelerator is here: without and with bfloat16."""
    return (
        capability("7.5", name="GPU without bfloat16 (T4)"),
        capability("8.0", name="GPU with bfloat16 (A100, L4)"),
    )


def target(name: str) -> Hardware:
    """The device called ``name``: a product, ``sm_75``, ``cpu`` or ``mps``.

    >>> target("nvidia-rtx 3090").compute_capability
    'sm_86'

    Raises:
        UsageError: no such device is known; the hint names those that are.
    """
    wanted = _key(name)
    if wanted in {"cpu", "mps"}:
        return CPU if wanted == "cpu" else MPS
    for compute_capability, products in _PRODUCTS.items():
        number = compute_capability.replace(".", "")
        if wanted in {f"sm{number}", f"sm_{number}"} or name.strip() == compute_capability:
            return capability(compute_capability)
        for product in products.split(", "):
            if _key(product) == wanted:
                return capability(compute_capability, name=product)
    raise UsageError(
        f"unknown GPU: {name!r} (expected a name or a compute capability)", hint=_KNOWN
    )


def of(device: Device) -> Hardware:
    """What is known of a device that was found."""
    match device.kind:
        case "cuda" if device.compute_capability is not None:
            number = device.compute_capability.removeprefix("sm_")
            dotted = number if "." in number else f"{number[:-1]}.{number[-1]}"
            return capability(dotted, name=device.name)
        case "mps":
            return MPS
        case _:
            return CPU


def _key(name: str) -> str:
    plain = name.casefold()
    for maker in ("nvidia", "geforce", "tesla"):
        plain = plain.replace(maker, "")
    return "".join(character for character in plain if character.isalnum())


_KNOWN = (
    "known: "
    + "; ".join(
        f"sm_{number.replace('.', '')} ({', '.join(products.split(', ')[:3])})"
        for number, products in _PRODUCTS.items()
    )
    + "; cpu; mps"
)
