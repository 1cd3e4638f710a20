"""The command that repeats a scan, and what is needed to type it."""

from __future__ import annotations

import shlex
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

import precheck
from precheck.judge import judge
from precheck.records.configuration import Configuration
from precheck.render import RENDERERS, Format
from precheck.render.parts.reproduction import reproduction, scan_command
from tests import hand_made
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

REPORT = judge(hand_made.qwen2_eager(), version="0.1.0")


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ({"quick": True}, "--quick"),
        ({"quick": True, "generate": 2}, "--quick --generate 2"),
        (
            {"quick": True, "accumulations": ["float16", "float32"]},
            "--accumulation float16,float32",
        ),
        ({"quick": True, "resident": True}, "--quick"),
        (
            {"quick": True, "kv_cache_dtypes": ["fp8", "int8"], "quantizations": "int4"},
            "--quick --kv-cache-dtype fp8_e4m3,int8 --quantization int4",
        ),
        ({"static": True}, "--static"),
    ],
)
def test_the_scan_that_ran_is_repeated(
    tmp_path: Path, arguments: dict[str, object], flags: str
) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path / "llama", tokenizer=True)
    report = precheck.scan(folder, dtypes="float16", attn_implementations="sdpa", **arguments)  # type: ignore[arg-type]
    assert scan_command(report).endswith(flags)


def test_a_repeated_scan_runs_the_formats_that_were_required(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path / "llama", tokenizer=True)
    required = (Configuration.parse("bfloat16+sdpa+kv:int8+q:fp8"),)
    report = precheck.scan(
        folder,
        dtypes=["float16", "bfloat16"],
        quick=True,
        quantizations="fp8",
        require=required,
    )
    _, _, _, *words = shlex.split(scan_command(report))
    flags = dict(pairwise(words))
    assert flags["--require"] == "bfloat16+sdpa+kv:int8+q:fp8"
    again = precheck.scan(
        folder,
        dtypes=flags["--dtype"].split(","),
        attn_implementations=flags["--attn"].split(","),
        quick=True,
        quantizations=flags["--quantization"],
        require=(Configuration.parse(flags["--require"]),),
    )
    assert [run.name for run in report.runs] == [run.name for run in again.runs]


def test_a_format_that_is_asked_for_and_required_is_run_once(tmp_path: Path) -> None:
    folder = save_checkpoint(tiny("llama"), tmp_path / "llama", tokenizer=True)
    required = (Configuration.parse("bfloat16+sdpa+kv:int8"),)
    report = precheck.scan(folder, quick=True, kv_cache_dtypes="int8", require=required)
    names = [run.name for run in report.runs]
    assert names.count("bfloat16 + sdpa + kv:int8") == 1


def test_a_default_scan_has_no_flags_of_its_own() -> None:
    assert "--quick" not in scan_command(REPORT)
    assert REPORT.options == ()


def test_nothing_is_installed_from_where_nothing_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for written_as in (Format.MARKDOWN, Format.HTML, Format.TABLE):
        assert "pip install precheck" not in RENDERERS[written_as].render(REPORT)
    assert reproduction(REPORT) == scan_command(REPORT)
    monkeypatch.setattr(
        "precheck.render.parts.reproduction.PROJECT_URL", "https://example.org/precheck"
    )
    install, scan = reproduction(REPORT).splitlines()
    assert install.startswith("pip install git+https://example.org/precheck@v0.1.0 torch==")
    assert scan == scan_command(REPORT)


def test_hostile_options_of_a_saved_report_stay_words() -> None:
    hostile = replace(REPORT, options=("--quick; rm -rf ~",))
    assert scan_command(hostile).endswith("'--quick; rm -rf ~'")
