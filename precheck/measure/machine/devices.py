"""Devices of this machine: those that torch can use, and GPUs that only the driver knows."""

from __future__ import annotations

import os
import platform
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from precheck.errors import UsageError, unknown
from precheck.facts.devices import table
from precheck.measure.machine import arithmetic
from precheck.records.report import Device

if TYPE_CHECKING:
    from collections.abc import Iterator


def find_devices() -> tuple[Device, ...]:
    """Every device, accelerators first, the CPU last.

    The NVIDIA driver is queried too (with nvidia-ml-py), for its version and for GPUs that the
    installed torch cannot use.
    """
    return (*_accelerators(), _cpu())


def cpu_name() -> str:
    """The processor's name from Linux, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _accelerators() -> tuple[Device, ...]:
    if torch.cuda.is_available():
        kind = "cuda" if torch.version.hip is None else "rocm"
        driver = _driver() if kind == "cuda" else None
        return tuple(
            _cuda(index, kind=kind, driver=driver) for index in range(torch.cuda.device_count())
        )
    if torch.backends.mps.is_available():
        return (Device(name=_apple_chip(), kind="mps", memory_bytes=psutil.virtual_memory().total),)
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return tuple(_xpu(index) for index in range(torch.xpu.device_count()))
    return tuple(_unusable_gpus())


def _cuda(index: int, *, kind: str, driver: str | None) -> Device:
    properties = torch.cuda.get_device_properties(index)
    capability = f"sm_{properties.major}{properties.minor}"
    if kind == "rocm":  # gfx942:sramecc+:xnack-
        capability = str(properties.gcnArchName).partition(":")[0]
    free = None
    with suppress(RuntimeError):  # another process has all of it
        free = int(torch.cuda.mem_get_info(index)[0])
    return Device(
        name=properties.name,
        kind=kind,
        compute_capability=capability,
        memory_bytes=properties.total_memory,
        memory_free_bytes=free,
        driver=driver,
    )


def _xpu(index: int) -> Device:
    properties = torch.xpu.get_device_properties(index)
    return Device(name=properties.name, kind="xpu", memory_bytes=properties.total_memory)


def _cpu() -> Device:
    memory = psutil.virtual_memory()
    capabilities = arithmetic.cpu_capabilities()
    known_features = dict.fromkeys(name for row in table().device for name in row.features)
    return Device(
        name=cpu_name(),
        kind="cpu",
        memory_bytes=memory.total,
        memory_free_bytes=memory.available,
        features=tuple(name for name in known_features if capabilities.get(name, False)),
    )


def _apple_chip() -> str:
    """``Apple M2 Pro``: the chip has the processor's name."""
    name = cpu_name()
    return name if name.startswith("Apple") else "Apple GPU"


@contextmanager
def _nvml() -> Iterator[Any]:
    """The driver's library, or None if it is absent or fails."""
    try:
        library: Any = import_module("pynvml")
        library.nvmlInit()
    except Exception:  # noqa: BLE001  no package, no driver, another version: no GPU to tell of
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _driver() -> str | None:
    with _nvml() as library:
        if library is None:
            return None
        try:
            return str(library.nvmlSystemGetDriverVersion())
        except library.NVMLError:
            return None


def _unusable_gpus() -> Iterator[Device]:
    """NVIDIA GPUs that this torch cannot use: built without CUDA, or the driver is too old."""
    with _nvml() as library:
        if library is None:
            return
        for index in range(library.nvmlDeviceGetCount()):
            try:
                handle = library.nvmlDeviceGetHandleByIndex(index)
                major, minor = library.nvmlDeviceGetCudaComputeCapability(handle)
                memory = library.nvmlDeviceGetMemoryInfo(handle)
                yield Device(
                    name=str(library.nvmlDeviceGetName(handle)),
                    kind="cuda",
                    compute_capability=f"sm_{major}{minor}",
                    memory_bytes=int(memory.total),
                    memory_free_bytes=int(memory.free),
                    driver=str(library.nvmlSystemGetDriverVersion()),
                    is_usable=False,
                )
            except library.NVMLError:  # a GPU that fell off the bus must not hide the others
                continue


def resolve_device(name: str) -> str:
    """The torch device to use: ``auto`` is CUDA if present, else MPS, else the CPU.

    Raises:
        UsageError: this machine has no such device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            rank = os.environ.get("LOCAL_RANK")  # one of several processes, each with its own GPU
            return "cuda" if rank is None else f"cuda:{rank}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        known = ("auto", "cpu", "cuda", "cuda:0", "mps")
        raise unknown("device", name, known, hint="--device auto") from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= present.get(device.type, 0):
        kinds = ["auto", *(kind for kind, count in present.items() if count)]
        raise UsageError(f"device not present: {name!r}", hint=f"use one of: {', '.join(kinds)}")
    return name
