"""What a shell completes: flags, and every value that precheck knows by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from precheck.commands import completion


def completed(*words: str) -> list[str]:
    """As bash asks for it: the last word is the one that is being typed."""
    environment = {
        "_PRECHECK_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("precheck", *words)),
        "COMP_CWORD": str(len(words)),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "precheck"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("words", "among"),
    [
        (("sc",), "scan"),
        (("scan", "--req"), "--require"),
        (("scan", "demo:qwen2-e"), "demo:qwen2-eager"),
        (("scan", "m", "--dtype", "flo"), "float16"),
        (("scan", "m", "--for", "sg"), "sglang"),
        (("scan", "m", "--format", "sar"), "sarif"),
        (("scan", "m", "--gpu", "T"), "T4"),
        (("explain", "PC30"), "PC301"),
        (("demo", "whisper"), "whisper-clamp"),
    ],
)
def test_the_shell_is_offered_what_begins_so(words: tuple[str, ...], among: str) -> None:
    assert among in completed(*words)


def test_a_list_is_completed_at_its_last_name() -> None:
    assert completion.dtypes("float16,b") == ["float16,bfloat16"]
    assert completion.dtypes("float16,f") == ["float16,float32"]
    assert "sdpa,eager" in completion.attentions("sdpa,e")


def test_a_configuration_is_a_dtype_or_both() -> None:
    assert completion.configurations("float16+sd") == ["float16+sdpa"]
    assert completion.configurations("bf") == [
        name for name in completion.configurations("") if name.startswith("bf")
    ]
    assert "bfloat16" in completion.configurations("bf")


def test_case_does_not_matter() -> None:
    assert "T4" in completion.gpus("t")


def test_nothing_is_offered_where_nothing_begins_so() -> None:
    for offers in (completion.models, completion.codes, completion.gpus, completion.dtypes):
        assert offers("no such beginning") == []
