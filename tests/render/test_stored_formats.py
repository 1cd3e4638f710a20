"""What is shown of formats: a table of their own, their names in the verdict, the engine's flag."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.precision import Dtype
from precheck.render import RENDERERS, Format, render_console
from precheck.render.parts.headline import headline, scope
from precheck.render.parts.layer_table import layer_columns
from precheck.render.parts.reproduction import plain_reproduction, scan_command
from precheck.render.parts.stored_formats.sizes import cache_bytes, weights_bytes
from precheck.render.parts.stored_formats.table import format_columns
from precheck.render.parts.words import DASH
from tests import hand_made
from tests.hand_made import in_format, run, scores_overflow
from tests.render.test_brief import brief

if TYPE_CHECKING:
    from precheck.records.report import Measurements, Report

STORY = hand_made.formats()
BYTES = 1_214_080 * 2
"""Of the weights in bfloat16."""
STORED = 1_048_576
"""Elements of the layers' matrices."""


def judged(measurements: Measurements = STORY) -> Report:
    return judge(measurements, version="0.1.0")


def rows(measurements: Measurements = STORY) -> dict[str, dict[str, str]]:
    """The cells of the only table, by format and heading."""
    ((_, columns),) = format_columns(judged(measurements))
    names = [cell.plain for cell in columns[0].cells]
    return {
        name: {column.header: column.cells[index].plain for column in columns}
        for index, name in enumerate(names)
    }


def with_runs(*changed: object) -> Measurements:
    return replace(STORY, runs=(*hand_made.healthy_runs(), *changed))  # type: ignore[arg-type]


def test_the_first_row_is_the_same_run_without_a_format() -> None:
    table = rows()
    assert list(table)[:2] == ["none", "kv:fp8_e4m3"]
    assert table["none"]["KL"] == "9.7e-04"
    assert table["kv:int4"]["verdict"] == "▼ degraded"
    assert table["kv:int4"]["top-1"] == "77.1%"


def test_memory_of_weights_counts_the_layers_in_the_format_and_the_rest_in_the_dtype() -> None:
    sizes = {
        run.quantization: weights_bytes(judged(), run)
        for run in judged().runs
        if run.dtype is Dtype.BFLOAT16 and run.kv_cache_dtype is None
    }
    assert sizes[None] == BYTES
    assert sizes["fp8"] == BYTES - 2 * STORED + STORED
    # 4 bits, and 8 for the scale of every 16 numbers
    assert sizes["nvfp4"] == BYTES - 2 * STORED + STORED * (4 + 8 / 16) / 8


@pytest.mark.parametrize(
    ("max_context", "num_tokens"), [(131_072, 32_768), (2_000, 2_000), (None, 32_768)]
)
def test_the_cache_is_that_of_32k_tokens_or_of_the_context(
    max_context: int | None, num_tokens: int
) -> None:
    model = replace(STORY.model, max_context=max_context)
    report = judged(replace(STORY, model=model))
    sizes = {run.kv_cache_dtype: cache_bytes(report, run) for run in report.runs[4:]}
    assert sizes[None] == num_tokens * 768 * 2
    assert sizes["fp8_e4m3"] == num_tokens * 768
    # a scale in float32 for the 128 numbers of a head
    assert sizes["int8"] == num_tokens * 768 * (8 + 32 / 128) / 8


def test_windows_and_states_count_as_they_are_kept() -> None:
    assert STORY.model.cache is not None
    cache = replace(
        STORY.model.cache, windowed_elements_per_token=256, window=1024, fixed_elements=4096
    )
    report = judged(replace(STORY, model=replace(STORY.model, cache=cache)))
    fp8 = next(run for run in report.runs if run.kv_cache_dtype == "fp8_e4m3")
    assert cache_bytes(report, fp8) == 32_768 * 768 + 1024 * 256 + 4096 * 2


def test_what_is_not_known_is_a_dash() -> None:
    assert STORY.model.widths is not None
    widths = replace(STORY.model.widths, layer_weights=None)
    table = rows(replace(STORY, model=replace(STORY.model, widths=widths, cache=None)))
    assert table["q:fp8"]["weights"] == table["kv:int8"]["cache 32k"] == DASH
    assert table["kv:int8"]["weights"] == table["none"]["weights"] != DASH
    packed = replace(STORY.model, quantization={"quant_method": "fp8"})
    assert rows(replace(STORY, model=packed))["q:fp8"]["weights"] == DASH
    later = rows(with_runs(in_format(kl=0.01, top1=0.99, kv_cache_dtype="later")))
    assert later["kv:later"]["cache 32k"] == DASH


@pytest.mark.parametrize("written_as", list(Format))
def test_a_format_of_a_saved_report_acts_on_no_terminal(written_as: Format) -> None:
    hostile = in_format(
        kl=0.3,
        top1=0.5,
        kv_cache_dtype="\x1b[31mred\u202e<b>",
        attn_implementation="sdpa\x9b31m<b>",
    )
    text = RENDERERS[written_as].render(judged(with_runs(hostile)))
    assert not any(each in text for each in ("\x1b", "\x9b", "\u202e"))
    assert written_as is not Format.HTML or "<b>" not in text


def test_runs_with_a_format_are_in_no_other_table() -> None:
    report = judged()
    text = render_console(report, width=200, colour=False, all_layers=True)
    assert text.count("kv:int8 ") == 1
    assert len(layer_columns(report)) == 1 + 6
    assert "and 0 more" not in text


def test_the_verdict_names_the_format_and_not_the_dtype() -> None:
    first, second, *_ = brief(STORY).splitlines()
    assert first.startswith("✓ bfloat16 + sdpa: safe")
    assert second == "✗ kv:int4 (KL 0.29), q:nvfp4 (KL 0.67) cost accuracy"
    one = with_runs(in_format(kl=0.26, top1=0.8, kv_cache_dtype="int4"))
    assert "✗ kv:int4 costs accuracy (KL 0.26)" in brief(one)
    assert "only in" not in brief(STORY)
    assert "only with" not in brief(STORY)


def test_a_format_is_not_blamed_for_what_breaks_without_it() -> None:
    """bfloat16 + eager loses accuracy; so does a format of it."""
    runs = hand_made.qwen2_eager().runs
    eager = replace(
        in_format(kl=0.6, top1=0.7, kv_cache_dtype="int8"),
        attn_implementation="eager",
        requested_attn_implementation="eager",
    )
    text = brief(replace(hand_made.qwen2_eager(), runs=(*runs, eager)))
    assert "cost" not in text
    assert "only with eager attention: float16 overflows in layer 3, bfloat16 loses" in text


def test_a_format_that_overflows_or_fails_says_so() -> None:
    broken = in_format(
        kl=0.0,
        top1=1.0,
        kv_cache_dtype="fp8_e4m3_unsaturated",
        overflows=(scores_overflow(),),
        reaches_output=True,
    )
    failed = in_format(kl=0.0, top1=1.0, kv_cache_dtype="int4", failure="no cache of its own")
    text = brief(with_runs(broken, failed), width=200)
    assert "✗ kv:fp8_e4m3_unsaturated overflows; kv:int4 could not be run" in text
    report = judged(with_runs(broken))
    assert plain_reproduction(report) is None  # without the format it does not break


def test_headline_and_scope_count_formats_apart() -> None:
    report = judged()
    assert headline(report).words == (
        "kv:int4 (KL 0.29), q:nvfp4 (KL 0.67) cost accuracy; "
        "without them SAFE in all 6 configurations measured"
    )
    assert scope(report).startswith("6 of 6 configurations and 4 of 6 formats can be used;")
    safe = judged(with_runs(in_format(kl=0.01, top1=0.99, kv_cache_dtype="int8")))
    assert headline(safe).words.startswith("SAFE in all 6 configurations measured and in 1 format,")


@pytest.mark.parametrize(
    ("engine", "required", "expected"),
    [
        ("vLLM", "kv:int8", "vllm serve acme/formats --kv-cache-dtype int8_per_token_head"),
        (
            "SGLang",
            "q:fp8",
            "format     q:fp8 in bfloat16: --quantization fp8",
        ),  # its dtype there is float16
        ("SGLang", "kv:int8", "kv:int8 in bfloat16: vLLM: --kv-cache-dtype int8_per_token_head"),
        ("vLLM", "kv:int4", "format     --kv-cache-dtype auto keeps keys and values in the dtype"),
        ("transformers", "q:int8_weight", "quantization_config=TorchAoConfig(Int8WeightOnly"),
    ],
)
def test_the_command_has_the_flag_of_the_engine(engine: str, required: str, expected: str) -> None:
    story = replace(STORY, runs=tuple(each for each in STORY.runs if each.dtype != Dtype.FLOAT16))
    text = brief(story, require=(f"bfloat16+sdpa+{required}",), engine=engine, width=200)
    assert expected in text


def test_without_a_requirement_the_smallest_usable_formats_are_named() -> None:
    text = brief(STORY, engine="vLLM", width=200)
    assert (
        "format     kv:int8 in bfloat16 (KL 3.1e-03): --kv-cache-dtype int8_per_token_head" in text
    )
    assert "q:fp8 in bfloat16 (KL 0.034): --quantization fp8_per_channel" in text
    assert "format     kv:int4" not in text


@pytest.mark.parametrize("width", [40, 80])
def test_a_flag_is_never_broken(width: int) -> None:
    text = brief(STORY, engine="vLLM", width=width)
    assert "--kv-cache-dtype int8_per_token_head" in text
    assert "--quantization fp8_per_channel" in text


def test_what_a_gpu_refuses_or_what_needs_more_than_a_flag_is_not_named_first() -> None:
    fnuz = in_format(kl=0.001, top1=0.99, kv_cache_dtype="fp8_e4m3fnuz")
    e4m3 = in_format(kl=0.012, top1=0.95, kv_cache_dtype="fp8_e4m3")
    both = with_runs(fnuz, e4m3)
    assert "kv:fp8_e4m3 in bfloat16" in brief(both, engine="vLLM")
    assert "kv:fp8_e4m3 in bfloat16" in brief(both, engine="vLLM", gpus=("H100",))
    assert "kv:fp8_e4m3fnuz in bfloat16" in brief(both, engine="vLLM", gpus=("MI300X",))


def test_where_no_format_of_the_cache_is_usable_the_dtype_is_kept() -> None:
    story = with_runs(in_format(kl=0.3, top1=0.8, kv_cache_dtype="int4"))
    text = brief(story, engine="vLLM")
    assert "--kv-cache-dtype auto: no format of the key-value cache was measured usable" in text


def test_nothing_is_said_of_formats_where_none_was_measured() -> None:
    text = brief(hand_made.measurements(), engine="vLLM")
    assert "format" not in text
    assert "kv-cache" not in text


def test_the_scan_is_repeated_with_its_formats() -> None:
    assert scan_command(judged()) == (
        "precheck scan acme/formats --dtype float32,float16,bfloat16 --attn sdpa,eager"
        " --device cpu --kv-cache-dtype fp8_e4m3,int8,int4 --quantization int8_weight,fp8,nvfp4"
    )


def test_the_chart_of_errors_tells_formats_apart() -> None:
    page = RENDERERS[Format.HTML].render(judged())
    assert "Error after each decoder layer, by format" in page
    assert "Formats in bfloat16 + sdpa" in page
    plain = RENDERERS[Format.HTML].render(judged(hand_made.measurements()))
    assert "by format" not in plain


def test_a_model_card_has_the_table_and_no_row_for_a_format() -> None:
    card = RENDERERS[Format.CARD].render(judged())
    assert card.count("kv:int8") == 1
    assert run(Dtype.BFLOAT16, "sdpa").name in card
