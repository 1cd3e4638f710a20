"""Products in float32, rounded: the same but for rounding, and the same verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from precheck.measure.machine import arithmetic
from precheck.measure.machine.arithmetic import arithmetic_of, cpu_capabilities
from precheck.measure.watch.ops import OpWatcher
from precheck.measure.watch.rounded_products import RoundedProducts
from precheck.pipeline import scan
from precheck.records.precision import Arithmetic, Dtype
from tests.measure.scans import faulty_run, passes, plain_inputs, scan_of
from tests.planted import FAULTS, PlantedFault, planted, planted_checkpoint
from tests.processors import told
from tests.tiny_models import architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture
def no_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bfloat16 arithmetic and no float16."""
    monkeypatch.setattr(arithmetic, "cpu_capabilities", lambda: {"avx512_bf16": True, "avx2": True})


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, ("native", "native")),  # a processor that says nothing
        ({"avx2": True, "avx512_bf16": False}, ("float32-rounded", "float32-rounded")),
        ({"avx512_bf16": True, "avx512_fp16": False}, ("float32-rounded", "native")),
        ({"avx512_bf16": True, "avx512_fp16": True}, ("native", "native")),
        ({"amx_fp16": True, "amx_bf16": True}, ("native", "native")),
        ({"fp16_arith": True, "bf16": False, "neon": True}, ("native", "float32-rounded")),
    ],
)
def test_the_instruction_set_decides(
    capabilities: dict[str, bool], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "cpu_capabilities", lambda: capabilities)
    dtypes = (Dtype.FLOAT16, Dtype.BFLOAT16)
    assert tuple(arithmetic_of(dtype, "cpu") for dtype in dtypes) == expected
    assert arithmetic_of(Dtype.FLOAT32, "cpu") is Arithmetic.NATIVE
    assert arithmetic_of(Dtype.FLOAT16, "cuda:0") is Arithmetic.NATIVE


@pytest.mark.pinned("the tested torch tells the processor's architecture")
def test_torch_says_what_the_processor_has() -> None:
    # The seam: if torch stops telling, float16 scans on such processors get slow without a word.
    capabilities = cpu_capabilities()
    assert isinstance(capabilities.get("architecture"), str)


def operands(dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Ordinary ones, ones at the edges of the range, and what is not finite."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(dtype)

    tiny_ones = draw(16, 64, scale=float(torch.finfo(dtype).smallest_normal))
    large = draw(16, 64, scale=200.0)
    odd = draw(16, 64)
    odd[3, 5], odd[4, 6], odd[5, 7] = torch.inf, -torch.inf, torch.nan
    return [
        (draw(16, 64), draw(64, 24)),
        (draw(16, 64), draw(24, 64).t()),  # as a linear layer has it
        (draw(64, 16).t(), draw(64, 48)[:, ::2]),
        (tiny_ones, draw(64, 24)),
        (large, large.t()),
        (odd, draw(64, 24)),
        (draw(1, 64).expand(16, 64), draw(64, 24)),
        (draw(0, 64), draw(64, 24)),
    ]


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Distance of neighbouring numbers of the dtype at the magnitude of ``values`` (float64)."""
    info = torch.finfo(dtype)
    exponent = values.abs().clamp(min=info.smallest_normal).log2().floor()
    return torch.exp2(exponent) * info.eps


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("op", ["mm", "addmm", "bmm", "baddbmm"])
def test_a_product_is_the_float64_one_rounded_once(
    dtype: torch.dtype, number: int, op: str
) -> None:
    left, right = operands(dtype)[number]
    bias = torch.linspace(-3, 3, 24).to(dtype)[: right.shape[1]]
    if right.shape[1] != bias.shape[0]:
        bias = bias[:1]
    args: tuple[Tensor, ...] = (left, right)
    if op.endswith("bmm"):
        args = (left.expand(2, *left.shape), right.expand(2, *right.shape))
    if op in {"addmm", "baddbmm"}:
        args = (bias, *args)
    func = getattr(torch.ops.aten, op).default
    rounded = RoundedProducts(dtype).compute(func, args, {})
    native = func(*args)
    exact = func(*(arg.double() for arg in args))
    assert rounded.dtype is dtype
    assert rounded.shape == native.shape
    assert torch.equal(rounded.isnan(), exact.to(dtype).isnan())
    # half an ulp is the rounding, the rest what sums of 64 float32 products lose
    scale = func(*(arg.double().abs() for arg in args))
    allowed = 0.5 * ulp(exact, dtype) + 64 * 2**-24 * scale
    finite = rounded.isfinite() & exact.isfinite()
    error = (rounded.double() - exact).abs()
    assert bool((error <= allowed)[finite].all())
    # and it overflows where the exact one, rounded, does
    assert torch.equal(rounded.isinf(), exact.to(torch.float32).to(dtype).isinf())
    # no number of the dtype is nearer than the exact one, rounded: so the processor's own product
    # is nowhere nearer than this one, whatever its kernel adds up in
    theirs = (native.double() - exact).abs()
    nearest = theirs + 2 * 64 * 2**-24 * scale
    assert bool((error <= nearest)[finite & native.isfinite()].all())


def test_memory_is_used_again_and_never_shared_by_two_operands() -> None:
    products = RoundedProducts(torch.float16)
    generator = torch.Generator().manual_seed(0)
    for size in (8, 64, 16):
        same = torch.randn(size, size, generator=generator).half()
        product = products.compute(torch.ops.aten.mm.default, (same, same.t()), {})
        torch.testing.assert_close(product, (same.float() @ same.t().float()).half())
    assert [tensor.numel() for tensor in products._scratch] == [64 * 64, 64 * 64]  # noqa: SLF001


def test_only_products_of_the_dtype_are_taken() -> None:
    products = RoundedProducts(torch.float16)
    half, single = torch.ones(2, 2).half(), torch.ones(2, 2)
    assert products.applies_to("aten.mm", [half, half])
    assert not products.applies_to("aten.mm", [single, single])
    assert not products.applies_to("aten.mul", [half, half])
    assert not products.applies_to("aten._scaled_dot_product_flash_attention_for_cpu", [half] * 3)


SLOW_KINDS = [fault for fault in FAULTS if fault.dtype is Dtype.FLOAT16]


@pytest.mark.usefixtures("no_float16")
@pytest.mark.parametrize("fault", planted(SLOW_KINDS[::3]), ids=lambda fault: fault.name)
def test_planted_faults_are_found_as_with_native_products(
    fault: PlantedFault, tmp_path: Path
) -> None:
    run = faulty_run(scan_of(fault, tmp_path), fault)
    assert run.arithmetic is Arithmetic.FLOAT32_ROUNDED
    overflow = run.first_overflow
    assert overflow is not None
    assert (overflow.module, overflow.op) == (fault.module, fault.op)
    assert overflow.mechanism is fault.mechanism
    assert overflow.absorbed is fault.absorbed


@pytest.mark.usefixtures("no_float16")
@pytest.mark.parametrize(
    "name", architectures(["qwen2", "gpt2", "mixtral", "qwen3_moe", "t5", "gemma3"])
)
def test_healthy_models_stay_safe(name: str, tmp_path: Path) -> None:
    report = scan(save_checkpoint(tiny(name), tmp_path, tokenizer=True), quick=True)
    assert {run.verdict for run in report.runs} == {"safe"}
    for run in report.runs:
        expected = "float32-rounded" if run.dtype is Dtype.FLOAT16 else "native"
        assert run.arithmetic == expected


@pytest.mark.usefixtures("no_float16")
def test_a_live_module_too() -> None:
    report = scan(tiny("qwen2"), quick=True, dtypes=["float16"])
    assert {run.dtype: str(run.arithmetic) for run in report.runs} == {
        Dtype.FLOAT32: "native",
        Dtype.FLOAT16: "float32-rounded",
    }


NEAR = 3.5e-3
"""The most that the logits of float16 may be off here: twice what was measured."""


def float16_error(folder: Path) -> float:
    """Relative error of the logits in float16 against the model in float64, mean over tokens.

    Of float64, not of one another: two ways to compute agree in every bit on one processor and in
    few on the next.
    """
    prompts = [list(range(32 * row, 32 * row + 32)) for row in range(4)]
    with passes() as found:
        # quick: not padded together besides
        scan(
            folder,
            dtypes=["float16"],
            attn_implementations=["sdpa"],
            prompts=prompts,
            quick=True,
        )
    (one,) = (each for each in found if each.configuration == ("float16", "sdpa"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        exact = model(**plain_inputs(one.batch), use_cache=False).logits
    errors = (one.final[0].double() - exact).norm(dim=-1) / exact.norm(dim=-1)
    return float(errors.mean())


@pytest.fixture
def healthy_qwen2(tmp_path: Path) -> Path:
    return save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)


def both_errors(folder: Path) -> tuple[float, float]:
    """Rounded products', and those of the processor."""
    with told("avx2"):
        rounded = float16_error(folder)
    with told("avx512_fp16"):
        return rounded, float16_error(folder)


def test_logits_are_as_near_to_float64_as_native_ones(healthy_qwen2: Path) -> None:
    rounded, native = both_errors(healthy_qwen2)
    assert rounded < NEAR
    assert rounded < 1.5 * native  # float16 sums may be further off, nothing is much nearer


def test_also_where_the_two_agree_in_every_bit(
    healthy_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Xeon with AVX512-FP16, at this size."""
    init: Callable[..., None] = OpWatcher.__init__

    def rounding(self: OpWatcher, **options: Any) -> None:
        own = options.pop("products", None) or RoundedProducts(torch.float16)
        init(self, products=own, **options)

    monkeypatch.setattr(OpWatcher, "__init__", rounding)
    rounded, native = both_errors(healthy_qwen2)
    assert rounded == native
    test_logits_are_as_near_to_float64_as_native_ones(healthy_qwen2)


def test_products_of_fewer_bits_are_further_off(
    healthy_qwen2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = RoundedProducts.compute

    def coarse(self: RoundedProducts, *args: Any) -> Tensor:
        return compute(self, *args).bfloat16().half()

    monkeypatch.setattr(RoundedProducts, "compute", coarse)
    rounded, native = both_errors(healthy_qwen2)
    assert rounded > max(NEAR, 1.5 * native)


@pytest.mark.usefixtures("no_float16")
def test_a_fault_is_looked_into_with_the_same_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is called again must not be computed in another way than what was odd.
    has_products: list[bool] = []
    init: Callable[..., None] = OpWatcher.__init__

    def listening(self: OpWatcher, **options: Any) -> None:
        has_products.append(options["products"] is not None)
        init(self, **options)

    monkeypatch.setattr(OpWatcher, "__init__", listening)
    fault = next(fault for fault in SLOW_KINDS if fault.attn_implementation == "eager")
    planted_checkpoint(fault, tmp_path)
    scan(tmp_path, dtypes=["float16"], attn_implementations=["eager"], quick=True)
    assert has_products.count(True) >= 2  # the run, and the unit that was called again
