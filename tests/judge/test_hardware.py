from __future__ import annotations

import pytest

from precheck.errors import UsageError
from precheck.judge.hardware import Bfloat16, capability, of, target
from precheck.records.report import Device


@pytest.mark.parametrize(
    ("name", "compute_capability", "bfloat16", "flash_attention_2"),
    [
        ("P100", "sm_60", Bfloat16.EMULATED, False),
        ("V100", "sm_70", Bfloat16.EMULATED, False),
        ("T4", "sm_75", Bfloat16.EMULATED, False),
        ("tesla t4", "sm_75", Bfloat16.EMULATED, False),
        ("RTX 2080 Ti", "sm_75", Bfloat16.EMULATED, False),
        ("A100", "sm_80", Bfloat16.NATIVE, True),
        ("A10", "sm_86", Bfloat16.NATIVE, True),
        ("NVIDIA GeForce RTX 3090", "sm_86", Bfloat16.NATIVE, True),
        ("rtx4090", "sm_89", Bfloat16.NATIVE, True),
        ("L4", "sm_89", Bfloat16.NATIVE, True),
        ("l40", "sm_89", Bfloat16.NATIVE, True),
        ("H100", "sm_90", Bfloat16.NATIVE, True),
        ("h200", "sm_90", Bfloat16.NATIVE, True),
        ("B200", "sm_100", Bfloat16.NATIVE, True),
        ("RTX 5090", "sm_120", Bfloat16.NATIVE, True),
        ("sm_75", "sm_75", Bfloat16.EMULATED, False),
        ("SM75", "sm_75", Bfloat16.EMULATED, False),
        ("8.6", "sm_86", Bfloat16.NATIVE, True),
        ("sm_110", "sm_110", Bfloat16.NATIVE, None),
        ("cpu", None, Bfloat16.DEPENDS, False),
        ("MPS", None, Bfloat16.DEPENDS, False),
    ],
)
def test_devices_are_known_by_name_and_by_capability(
    name: str, compute_capability: str | None, bfloat16: Bfloat16, flash_attention_2: bool | None
) -> None:
    device = target(name)
    assert device.compute_capability == compute_capability
    assert device.bfloat16 is bfloat16
    assert device.flash_attention_2 is flash_attention_2
    assert device.sources


@pytest.mark.parametrize("name", ["", "T5", "sm_99", "A1000", "75"])
def test_an_unknown_name_says_what_is_known(name: str) -> None:
    with pytest.raises(UsageError, match="unknown GPU") as caught:
        target(name)
    assert caught.value.hint is not None
    assert "sm_75 (T4" in caught.value.hint


def test_sdpa_below_sm_80_has_no_fused_bfloat16() -> None:
    assert "math kernel" in target("T4").sdpa_bfloat16
    assert "fused" in target("A100").sdpa_bfloat16


@pytest.mark.parametrize("written", ["sm_90", "9.0"])
def test_a_gpu_that_was_found_is_known_by_its_capability(written: str) -> None:
    found = of(Device(name="NVIDIA H200", kind="cuda", compute_capability=written))
    assert (found.name, found.compute_capability) == ("NVIDIA H200", "sm_90")


def test_a_newer_gpu_than_the_table_has_bfloat16() -> None:
    newer = capability("13.0")
    assert newer.bfloat16 is Bfloat16.NATIVE
    assert newer.flash_attention_2 is None


def test_other_accelerators_are_told_apart() -> None:
    assert of(Device(name="Apple M3", kind="mps")).kind == "mps"
    assert of(Device(name="cpu", kind="cpu")).kind == "cpu"
