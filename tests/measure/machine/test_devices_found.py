"""Devices that are found: with the driver's library in every state it can be in."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from precheck.measure.machine import arithmetic
from precheck.measure.machine.devices import find_devices

GIB = 1 << 30


class NVMLError(Exception):
    pass


class Driver:
    """What nvidia-ml-py is, with two GPUs; ``broken`` names calls that fail."""

    NVMLError = NVMLError

    def __init__(self, *broken: str) -> None:
        self.broken = broken
        self.is_open = False

    def _call(self, name: str) -> None:
        if name in self.broken:
            raise NVMLError(name)

    def nvmlInit(self) -> None:  # noqa: N802  the library's names
        self._call("init")
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index == 0:
            self._call("first")
        return index

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return ((7, 5), (9, 0))[handle]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=(15 * GIB, 80 * GIB)[handle], free=(14 * GIB, GIB)[handle])

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        return ("Tesla T4", "NVIDIA H100 80GB HBM3")[handle]

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_gpus_that_torch_cannot_use_are_told_by_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setitem(sys.modules, "pynvml", driver)
    first, second, cpu = find_devices()
    assert (first.name, first.compute_capability, first.memory_bytes) == (
        "Tesla T4",
        "sm_75",
        15 * GIB,
    )
    assert (second.memory_free_bytes, second.driver) == (GIB, "580.65.06")
    assert not first.is_usable
    assert (cpu.kind, cpu.is_usable) == ("cpu", True)
    assert not driver.is_open


@pytest.mark.parametrize("library", [None, Driver("init")])
def test_without_driver_or_library_there_is_the_cpu(
    monkeypatch: pytest.MonkeyPatch, library: Driver | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert [device.kind for device in find_devices()] == ["cpu"]


def test_a_gpu_that_fell_off_the_bus_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Driver("first"))
    assert [device.name for device in find_devices()][:1] == ["NVIDIA H100 80GB HBM3"]


def test_what_torch_can_use_is_read_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="Tesla T4", major=7, minor=5, total_memory=15 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (7 * GIB, 15 * GIB))
    monkeypatch.setitem(sys.modules, "pynvml", Driver())
    first, second, _ = find_devices()
    assert first == second
    assert first.is_usable
    assert (first.compute_capability, first.memory_free_bytes) == ("sm_75", 7 * GIB)
    assert first.driver == "580.65.06"


def test_an_amd_gpu_goes_by_its_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(
        name="AMD Instinct MI300X",
        major=9,
        minor=4,
        total_memory=192 * GIB,
        gcnArchName="gfx942:sramecc+:xnack-",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (GIB, 192 * GIB))
    monkeypatch.setattr(torch.version, "hip", "6.4")
    device = find_devices()[0]
    assert (device.kind, device.compute_capability) == ("rocm", "gfx942")


def test_a_cpu_tells_its_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    capabilities = {"avx2": True, "avx512_bf16": True, "amx_bf16": False, "cpu_name": "x"}
    monkeypatch.setattr(arithmetic, "cpu_capabilities", lambda: capabilities)
    assert find_devices()[-1].features == ("avx512_bf16", "avx2")
