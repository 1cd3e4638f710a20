from __future__ import annotations

import pytest

from precheck.errors import UsageError
from precheck.facts.devices import GIB, DeviceRow, find, of, of_capability, table
from precheck.facts.hardware import Support, is_slow
from precheck.measure.machine import arithmetic
from precheck.records.finding import Confidence
from precheck.records.precision import Arithmetic, Dtype
from precheck.records.report import Device

NATIVE, EMULATED = Support.NATIVE, Support.EMULATED


@pytest.mark.parametrize(
    ("name", "compute_capability", "bfloat16", "memory"),
    [
        ("P100", "sm_60", EMULATED, 12),
        ("V100", "sm_70", EMULATED, 16),
        ("Tesla V100-SXM2-32GB", "sm_70", EMULATED, 32),
        ("T4", "sm_75", EMULATED, 15),
        ("tesla t4", "sm_75", EMULATED, 15),
        ("RTX 2080 Ti", "sm_75", EMULATED, 11),
        ("A100", "sm_80", NATIVE, 40),
        ("NVIDIA A100-SXM4-80GB", "sm_80", NATIVE, 80),
        ("a100 80gb", "sm_80", NATIVE, 80),
        ("A10", "sm_86", NATIVE, 22.5),
        ("NVIDIA GeForce RTX 3090", "sm_86", NATIVE, 24),
        ("rtx4090", "sm_89", NATIVE, 24),
        ("NVIDIA RTX 6000 Ada Generation", "sm_89", NATIVE, 48),
        ("L4", "sm_89", NATIVE, 22.5),
        ("NVIDIA H100 80GB HBM3", "sm_90", NATIVE, 80),
        ("NVIDIA H100 PCIe", "sm_90", NATIVE, 80),
        ("h200", "sm_90", NATIVE, 141),
        ("B200", "sm_100", NATIVE, 180),
        ("RTX 5090", "sm_120", NATIVE, 32),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm_120", NATIVE, 96),
        ("GB10", "sm_121", NATIVE, 128),
        ("AMD Instinct MI300X OAM", "gfx942", NATIVE, 192),
        ("MI300X", "gfx942", NATIVE, 192),
        ("Radeon RX 7900 XTX", "gfx1100", NATIVE, 24),
        ("Apple M1", None, EMULATED, 8),
        ("M4 Pro", None, NATIVE, 24),
        ("Gaudi 2", None, NATIVE, 96),
        ("Intel Arc B580", None, NATIVE, 12),
        ("Ascend 910B", None, NATIVE, 32),
    ],
)
def test_products_are_known_by_the_names_people_and_drivers_use(
    name: str, compute_capability: str | None, bfloat16: Support, memory: float
) -> None:
    device = find(name)
    assert device.compute_capability == compute_capability
    assert device.bfloat16 is bfloat16
    assert device.memory_bytes == memory * GIB
    assert device.sources


@pytest.mark.parametrize("name", ["sm_75", "SM75", "7.5", "sm_90a", "gfx942", "cpu", "MPS"])
def test_kinds_are_known_by_capability_and_have_no_memory(name: str) -> None:
    assert find(name).memory_bytes is None


@pytest.mark.parametrize("name", ["", "T5", "A1000", "75", "RTX", "GB", "sm_", "80GB"])
def test_an_unknown_name_says_how_to_ask(name: str) -> None:
    with pytest.raises(UsageError, match="unknown GPU") as caught:
        find(name)
    assert caught.value.hint is not None
    assert "--gpu sm_75" in caught.value.hint


def test_a_misspelt_name_is_told_what_is_close() -> None:
    with pytest.raises(UsageError) as caught:
        find("RTX 3099")
    assert "did you mean RTX 3090" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("unknown", "like", "bfloat16"),
    [("sm_140", "sm_121", NATIVE), ("sm_107", "sm_103", NATIVE), ("sm_50", "sm_60", EMULATED)],
)
def test_a_capability_nobody_knows_is_assumed_and_said(
    unknown: str, like: str, bfloat16: Support
) -> None:
    device = find(unknown)
    assert device.bfloat16 is bfloat16
    assert device.confidence is Confidence.PREDICTED
    assert unknown in device.assumptions[0]
    assert like in device.assumptions[0]


def test_a_size_that_is_assumed_is_said_and_one_that_is_asked_for_is_not() -> None:
    assert "sold with 40 or 80 GiB" in find("A100").assumptions[0]
    assert find("A100 80GB").assumptions == ()
    assert find("T4").assumptions == ()
    odd = find("T4 64GB")
    assert odd.memory_bytes == 60 * GIB  # a sixteenth is for error correction
    assert "not 64" in odd.assumptions[0]


def test_a_found_gpu_goes_by_its_capability_and_its_own_memory() -> None:
    hardware = of(
        Device(
            name="NVIDIA Something New",
            kind="cuda",
            compute_capability="sm_90",
            memory_bytes=7 * GIB,
        )
    )
    assert hardware.name == "NVIDIA Something New"
    assert hardware.bfloat16 is NATIVE
    assert hardware.memory_bytes == 7 * GIB
    assert hardware.assumptions == ()


def test_a_gpu_that_torch_cannot_use_is_said_to_be_one() -> None:
    hardware = of(Device(name="T4", kind="cuda", compute_capability="sm_75", is_usable=False))
    assert "cannot use" in hardware.assumptions[0]


@pytest.mark.parametrize(
    ("features", "float16", "bfloat16"),
    [
        (("amx_fp16", "amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_f"), NATIVE, NATIVE),
        (("amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_f", "avx2"), NATIVE, NATIVE),
        (("avx512_fp16", "avx512_bf16", "avx512_f", "avx2"), NATIVE, NATIVE),
        (("avx512_bf16", "avx512_f", "avx2"), EMULATED, NATIVE),
        (("avx512_f", "avx2"), EMULATED, EMULATED),
        (("avx2",), EMULATED, EMULATED),
        (("neon", "fp16_arith", "bf16"), NATIVE, NATIVE),
        (("neon", "fp16_arith"), NATIVE, EMULATED),
        ((), Support.DEPENDS, Support.DEPENDS),
    ],
)
def test_a_cpu_goes_by_its_instruction_sets(
    features: tuple[str, ...], float16: Support, bfloat16: Support
) -> None:
    hardware = of(Device(name="some processor", kind="cpu", features=features))
    assert (hardware.name, hardware.float16, hardware.bfloat16) == ("cpu", float16, bfloat16)


def test_an_unknown_amd_gpu_is_taken_for_the_least() -> None:
    hardware = of(Device(name="AMD Radeon", kind="rocm", compute_capability="gfx1999"))
    assert (hardware.float16, hardware.bfloat16) == (NATIVE, EMULATED)
    assert "gfx1999 is not in the table" in hardware.assumptions[0]


@pytest.mark.parametrize(
    "row", [row for row in table().device if row.kind == "cpu"], ids=lambda row: row.id
)
def test_a_scan_rounds_products_where_the_table_has_no_arithmetic(
    row: DeviceRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "cpu_capabilities", lambda: dict.fromkeys(row.features, True))
    for dtype, support in ((Dtype.FLOAT16, row.float16), (Dtype.BFLOAT16, row.bfloat16)):
        is_native = arithmetic.arithmetic_of(dtype, "cpu") is Arithmetic.NATIVE
        assert is_native == (support is NATIVE)


def test_what_is_slower_than_float32() -> None:
    assert is_slow(Dtype.BFLOAT16, find("V100"))
    assert not is_slow(Dtype.FLOAT16, find("V100"))
    assert not is_slow(Dtype.FLOAT32, find("V100"))
    assert is_slow(Dtype.FLOAT16, find("Gaudi 1"))
    assert is_slow(Dtype.BFLOAT16, find("Ascend 910A"))
    zen4 = of(Device(name="Zen 4", kind="cpu", features=("avx512_bf16", "avx512_f")))
    assert is_slow(Dtype.FLOAT16, zen4)
    assert not is_slow(Dtype.BFLOAT16, zen4)


@pytest.mark.parametrize("row", table().device, ids=lambda row: row.id)
def test_every_row_and_product_can_be_asked_for(row: object) -> None:
    known = next(each for each in table().device if each is row)
    assert find(known.id).architecture == known.architecture
    for product in known.products:
        device = find(product.name)
        assert (device.architecture, device.name) == (known.architecture, product.name)
        assert list(product.memory) == sorted(set(product.memory))
        assert find(f"{product.name} {product.memory[-1]:g}GB").memory_bytes == int(
            product.memory[-1] * GIB * (15 / 16 if product.ecc else 1)
        )


def test_native_bfloat16_begins_with_ampere() -> None:
    for row in table().device:
        if row.kind == "cuda":
            capability = of_capability(row.id).capability
            assert capability is not None
            assert (row.bfloat16 is NATIVE) == (capability >= (8, 0))
            assert row.fp8 == (capability >= (8, 9))
