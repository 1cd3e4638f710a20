"""What is advised: a row for a measured model, a device and what must be said of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from tests.judge import stories

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.records.advice import EngineAdvice, Recommendation
    from precheck.records.report import Measurements


@dataclass(frozen=True, kw_only=True)
class Row:
    """A decision; what is None or empty is not asked about."""

    story: Callable[[], Measurements]
    device: str
    use: str | None
    """``float16 + sdpa``; None: nothing can be recommended."""
    because: tuple[str, ...] = ()
    """Each is part of a reason."""
    fits: bool | None = True
    sdpa: str | None = None
    """The kernel torch runs without padding, or ``no`` where the model or device has none."""
    vllm: str | None = None
    """What it takes by default; ``refuses`` where there is no dtype."""
    vllm_safe: bool | None = None
    sglang: str | None = None
    sglang_safe: bool | None = None
    flag: str | None = None
    """What vLLM is to be told; empty where it needs no flag."""
    flash: bool | None = None
    """Whether flash_attention_2 can be had."""


def big_gemma() -> Measurements:
    return stories.gemma3(12.2)


def healthy_14b() -> Measurements:
    return stories.healthy(14.7)


def healthy_70b() -> Measurements:
    return stories.healthy(70.6)


def small_tight() -> Measurements:
    return stories.tight(size=1.7)


def big_softcap() -> Measurements:
    return stories.softcap(27.2)


S, Q, G, P = stories.healthy, stories.qwen2, stories.gemma3, stories.llama_product
ROWS = (
    # Qwen2: only eager breaks, so float16 stays, and every engine is fine
    Row(
        story=Q,
        device="T4",
        use="float16 + sdpa",
        sdpa="memory-efficient",
        flash=False,
        vllm="float16",
        vllm_safe=True,
        sglang="float16",
        sglang_safe=True,
        flag="",
        fits=False,
        because=("does not fit", "predicted for sm_75"),
    ),
    Row(story=Q, device="T4 32GB", use="float16 + sdpa", because=("room for",), vllm="float16"),
    Row(
        story=Q,
        device="V100 32GB",
        use="float16 + sdpa",
        sdpa="memory-efficient",
        vllm="refuses",
        sglang="refuses",
        flash=False,
    ),
    Row(
        story=Q,
        device="A100",
        use="float16 + sdpa",
        sdpa="flash",
        flash=True,
        vllm="bfloat16",
        vllm_safe=True,
        flag=" --dtype float16",
        because=("bits of headroom",),
    ),
    Row(story=Q, device="H100", use="float16 + sdpa", sdpa="cudnn", flash=True, vllm="bfloat16"),
    Row(story=Q, device="H200", use="float16 + sdpa", sdpa="cudnn", vllm_safe=True),
    Row(story=Q, device="B200", use="float16 + sdpa", sdpa="cudnn", flash=True),
    Row(story=Q, device="RTX 4090", use="float16 + sdpa", sdpa="flash", flash=True),
    Row(story=Q, device="RTX 5090", use="float16 + sdpa", sdpa="flash", flash=True),
    Row(story=Q, device="L4", use="float16 + sdpa", sdpa="flash", because=("room for",)),
    Row(
        story=Q, device="RTX 3060 12GB", use="float16 + sdpa", fits=False, because=("does not fit",)
    ),
    Row(
        story=Q,
        device="P40",
        use="float16 + sdpa",
        sdpa="memory-efficient",
        vllm="refuses",
        sglang="refuses",
    ),
    Row(story=Q, device="Apple M2 Max", use="float16 + sdpa", vllm="refuses", flash=False),
    Row(story=Q, device="Apple M4 Max", use="float16 + sdpa", vllm="refuses"),
    Row(story=Q, device="mps", use="float16 + sdpa", fits=None),
    Row(story=Q, device="cpu", use="float16 + sdpa", fits=None, sdpa="flash", vllm="bfloat16"),
    Row(story=Q, device="MI300X", use="float16 + sdpa", sdpa="flash", flash=True, vllm="bfloat16"),
    Row(story=Q, device="sm_75", use="float16 + sdpa", fits=None, vllm="float16"),
    Row(
        story=Q,
        device="sm_130",
        use="float16 + sdpa",
        fits=None,
        sdpa="math",
        because=("sm_130 is not in the table",),
    ),
    # the residual stream leaves float16: bfloat16 where it is native, float32 where it is not
    Row(
        story=G,
        device="T4 32GB",
        use="float32 + sdpa",
        sdpa="memory-efficient",
        vllm="float32",
        vllm_safe=True,
        sglang="float16",
        sglang_safe=False,
        flag="",
        because=("has no bfloat16", "8 times slower"),
    ),
    Row(
        story=G,
        device="T4",
        use="float32 + sdpa",
        fits=False,
        because=("does not fit", "has no bfloat16"),
    ),
    Row(
        story=G,
        device="V100 32GB",
        use="float32 + sdpa",
        vllm="refuses",
        sglang="refuses",
        because=("8 times slower",),
    ),
    Row(story=G, device="P100", use="float32 + sdpa", fits=False, because=("2 times slower",)),
    Row(
        story=G,
        device="A100",
        use="bfloat16 + sdpa",
        sdpa="flash",
        vllm="bfloat16",
        vllm_safe=True,
        sglang="bfloat16",
        sglang_safe=True,
        flag="",
    ),
    Row(story=G, device="H100", use="bfloat16 + sdpa", sdpa="cudnn", vllm_safe=True),
    Row(story=G, device="L4", use="bfloat16 + sdpa", because=("room for",)),
    Row(story=G, device="Apple M1 Max", use="float32 + sdpa", because=("has no bfloat16",)),
    Row(story=G, device="Apple M3 Max", use="bfloat16 + sdpa"),
    Row(story=G, device="cpu", use="bfloat16 + sdpa", fits=None),
    Row(story=G, device="Gaudi 1", use="bfloat16 + sdpa", vllm="refuses"),
    Row(story=G, device="Ascend 910A", use="float32 + sdpa", because=("has no bfloat16",)),
    Row(
        story=G, device="Arc A770 16GB", use="float32 + sdpa", fits=False, because=("does not fit",)
    ),
    Row(story=G, device="MI300X", use="bfloat16 + sdpa", vllm="bfloat16", vllm_safe=True),
    Row(story=G, device="Radeon RX 6800", use="float32 + sdpa", sdpa="math", fits=False),
    Row(story=big_gemma, device="T4", use="float32 + sdpa", fits=False, because=("does not fit",)),
    Row(
        story=big_gemma,
        device="RTX 4090",
        use="bfloat16 + sdpa",
        fits=False,
        because=("does not fit",),
    ),
    Row(story=big_gemma, device="A100", use="bfloat16 + sdpa", because=("room for",)),
    # a product inside one feed-forward block
    Row(
        story=P,
        device="T4 32GB",
        use="float32 + sdpa",
        vllm="float16",
        vllm_safe=False,
        sglang_safe=False,
        flag=" --dtype float32",
    ),
    Row(story=P, device="A100", use="bfloat16 + sdpa", vllm="bfloat16", vllm_safe=True),
    Row(story=P, device="RTX 2080 Ti", use="float32 + sdpa", fits=False),
    # little headroom: bfloat16 where it is native, float16 with a warning elsewhere
    Row(
        story=small_tight,
        device="T4",
        use="float16 + sdpa",
        because=("0.9 bits of headroom",),
        vllm="float16",
        vllm_safe=True,
    ),
    Row(story=small_tight, device="A100", use="bfloat16 + sdpa", vllm_safe=True),
    Row(story=stories.tight, device="H100", use="bfloat16 + sdpa", because=("room for",)),
    Row(story=stories.tight, device="A100 80GB", use="bfloat16 + sdpa"),
    Row(story=stories.tight, device="L40S", use="bfloat16 + sdpa", fits=False),
    # a model without a fault: smallest that fits
    Row(story=S, device="T4", use="float16 + sdpa", fits=False),
    Row(story=S, device="RTX 3090", use="float16 + sdpa", vllm="bfloat16", vllm_safe=True),
    Row(story=S, device="A30", use="float16 + sdpa", sdpa="flash"),
    Row(
        story=healthy_14b, device="T4", use="float16 + sdpa", fits=False, because=("does not fit",)
    ),
    Row(story=healthy_14b, device="L40S", use="float16 + sdpa", because=("27.4 GiB of weights",)),
    Row(story=healthy_70b, device="H100", use="float16 + sdpa", fits=False),
    Row(story=healthy_70b, device="MI300X", use="float16 + sdpa", because=("room for",)),
    Row(story=healthy_70b, device="B200", use="float16 + sdpa"),
    # quantised: fits where float16 does not, and packed weights do not grow
    Row(
        story=stories.gptq,
        device="T4",
        use="float16 + sdpa",
        because=("9.5 GiB of weights",),
        vllm="float16",
        vllm_safe=True,
        flag="",
    ),
    Row(story=stories.gptq, device="RTX 4080", use="float16 + sdpa", because=("room for",)),
    Row(story=stories.gptq, device="RTX 2060", use="float16 + sdpa", fits=False),
    Row(story=stories.gptq, device="A100", use="float16 + sdpa", vllm="float16"),
    # gpt-oss: sinks and MXFP4, no sdpa, float16 breaks in the last layer
    Row(
        story=stories.gpt_oss,
        device="H100",
        use="bfloat16 + eager",
        sdpa="no",
        flash=False,
        vllm="bfloat16",
        vllm_safe=True,
        flag="",
    ),
    Row(
        story=stories.gpt_oss,
        device="RTX 4090",
        use="bfloat16 + eager",
        flash=False,
        because=("room for",),
    ),
    Row(
        story=stories.gpt_oss,
        device="T4",
        use="float32 + eager",
        fits=False,
        vllm="refuses",
        sglang="float16",
        sglang_safe=False,
    ),
    Row(story=stories.gpt_oss, device="V100 32GB", use="float32 + eager", vllm="refuses"),
    # heads of 512 elements: no FlashAttention, and sdpa is not flash
    Row(
        story=stories.wide_heads,
        device="A100",
        use="float16 + sdpa",
        sdpa="memory-efficient",
        flash=False,
    ),
    Row(
        story=stories.wide_heads,
        device="H100",
        use="float16 + sdpa",
        sdpa="memory-efficient",
        flash=False,
    ),
    Row(story=stories.wide_heads, device="MI300X", use="float16 + sdpa", sdpa="flash", flash=False),
    Row(story=stories.wide_heads, device="Radeon RX 7900 XTX", use="float16 + sdpa", sdpa="math"),
    # a softcap: sdpa cannot, FlashAttention can
    Row(
        story=stories.softcap,
        device="A100",
        use="float16 + eager",
        sdpa="no",
        flash=True,
        vllm="bfloat16",
        vllm_safe=True,
        flag="",
    ),
    Row(
        story=stories.softcap,
        device="T4 32GB",
        use="float16 + eager",
        sdpa="no",
        flash=False,
        vllm="float32",
        vllm_safe=True,
        sglang="float16",
        sglang_safe=True,
    ),
    Row(story=big_softcap, device="H100", use="float16 + eager", flash=True),
    # an encoder in float32
    Row(
        story=stories.encoder,
        device="T4",
        use="float16 + sdpa",
        vllm="float16",
        vllm_safe=True,
        sglang="float16",
    ),
    Row(story=stories.encoder, device="A100", use="float16 + sdpa", vllm="float16"),
    Row(story=stories.encoder, device="cpu", use="float16 + sdpa", fits=None, vllm="float16"),
    Row(story=stories.encoder, device="Apple M2", use="float16 + sdpa", sdpa=None),
)


def name(row: Row) -> str:
    return f"{row.story.__name__}-{row.device.replace(' ', '_')}"


def advised(row: Row) -> Recommendation:
    report = judge(row.story(), gpus=(row.device,), version="0.1.0")
    assert report.recommendation is not None
    return report.recommendation


def engine(advice: Recommendation, name: str) -> EngineAdvice:
    return next(row for row in advice.engines if row.engine == name)


def test_the_table_is_large_and_has_what_was_asked_for() -> None:
    assert len(ROWS) >= 60
    assert len({name(row) for row in ROWS}) == len(ROWS)
    on_qwen = {row.device for row in ROWS if row.story is Q}
    assert {"T4", "A100", "H100", "mps", "cpu"} <= on_qwen


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_what_to_use(row: Row) -> None:
    advice = advised(row)
    chosen = None if advice.dtype is None else f"{advice.dtype} + {advice.attn_implementation}"
    assert chosen == row.use, advice.rejected
    reasons = "; ".join(advice.reasons)
    assert [reason for reason in row.because if reason not in reasons] == [], reasons


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_whether_it_fits(row: Row) -> None:
    advice = advised(row)
    memory = next(fit for fit in advice.fits if fit.dtype == advice.dtype)
    assert memory.fits is row.fits, memory
    assert ("does not fit" in "; ".join(advice.reasons)) == (row.fits is False)


@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.sdpa or row.flash is not None], ids=name
)
def test_which_attention_can_be_had(row: Row) -> None:
    options = {each.attn_implementation: each for each in advised(row).attention}
    if row.sdpa == "no":
        assert not options["sdpa"].usable
    elif row.sdpa is not None:
        assert (options["sdpa"].kernel or "").split(",")[0] == row.sdpa
    if row.flash is not None:
        assert options["flash_attention_2"].usable is row.flash, options["flash_attention_2"].why


@pytest.mark.parametrize("row", [row for row in ROWS if row.vllm or row.sglang], ids=name)
def test_what_engines_do(row: Row) -> None:
    advice = advised(row)
    for which, dtype, safe in (
        ("vLLM", row.vllm, row.vllm_safe),
        ("SGLang", row.sglang, row.sglang_safe),
    ):
        found = engine(advice, which)
        if dtype is not None:
            assert (found.default_dtype or "refuses") == dtype, found.default
        if safe is not None:
            assert found.is_default_safe is safe, found
    if row.flag is not None:
        command = engine(advice, "vLLM").command
        assert command == f"vllm serve {row.story().model.id}{row.flag}"


@pytest.mark.parametrize("row", ROWS, ids=name)
def test_no_engine_is_told_to_run_what_breaks(row: Row) -> None:
    measured = row.story()
    broken = {
        run.dtype.value
        for run in judge(measured, version="0.1.0").runs
        if run.verdict in {"overflow", "degraded"} and run.attn_implementation != "eager"
    }
    for each in advised(row).engines:
        if each.engine == "llama.cpp":  # keeps the residual stream in float32
            continue
        assert not any(f"--dtype {dtype}" in (each.command or "") for dtype in broken)


def test_a_live_module_is_nothing_that_an_engine_could_serve() -> None:
    scan = stories.qwen2()
    live = replace(scan, model=replace(scan.model, id=scan.model.architecture))
    advice = judge(live, gpus=("T4",), version="0.1.0").recommendation
    assert advice is not None
    assert advice.engines == ()
    assert set(advice.snippets) == {"transformers"}


def test_where_nothing_was_run_engines_get_what_is_recommended() -> None:
    base = stories.healthy(1.0)
    unmeasured = replace(base, runs=(), headroom=(), probes=(), is_static=True)
    unmeasured = replace(
        unmeasured,
        model=replace(unmeasured.model, model_type="unheard_of", declared_dtype="float16"),
    )
    advice = judge(unmeasured, gpus=("T4",), version="0.1.0").recommendation
    assert advice is not None
    assert (advice.dtype, advice.confidence) == ("float16", "predicted")
    for each in ("vLLM", "SGLang", "TGI"):
        found = engine(advice, each)
        assert found.default_dtype == "float16"
        assert (found.command or "").endswith("some/llama")
        assert found.is_default_safe is None


@pytest.mark.parametrize("device", ["T4", "A100"])
def test_an_architecture_that_an_engine_does_not_list_gets_no_command_there(device: str) -> None:
    scan = stories.encoder()
    scan = replace(
        scan, model=replace(scan.model, architecture="DebertaV2ForSequenceClassification")
    )
    advice = judge(scan, gpus=(device,), version="0.1.0").recommendation
    assert advice is not None
    ours, *others = advice.engines
    assert ours.engine == "transformers"
    assert ours.command is not None
    for each in others:
        assert (each.command, each.default_dtype, each.is_default_safe) == (None, None, None)
        assert each.default == "not known to support DebertaV2ForSequenceClassification"


def test_no_promise_for_an_engine_where_all_that_ran_in_its_dtype_broke() -> None:
    base = stories.qwen2(1.5)
    eager = tuple(run for run in base.runs if run.attn_implementation == "eager")
    broken = judge(replace(base, runs=eager), gpus=("T4",), version="0.1.0").recommendation
    assert broken is not None
    for each in ("vLLM", "SGLang", "TGI"):
        found = engine(broken, each)
        assert found.is_default_safe is None
        assert "float16" not in (found.command or "")
    whole = judge(base, gpus=("T4",), version="0.1.0").recommendation
    assert whole is not None
    assert engine(whole, "SGLang").is_default_safe is True
