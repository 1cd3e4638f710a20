from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.judge import judge
from precheck.records.precision import Dtype
from precheck.records.traces import GREEDY, Generation, Probe
from precheck.render import RENDERERS, Format
from precheck.render.parts.redaction import PRIVATE_TEXT, redacted
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report

SECRETS = [
    "hf_" + "aB3" * 12,
    "ghp_" + "x1Y" * 12,
    "github_pat_" + "A1_" * 10,
    "glpat-" + "a-b_" * 6,
    "sk-proj-" + "a1B2" * 8,
    "xoxb-" + "1234-abcdef12",
    "AKIA" + "ABCDEFGH12345678",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJl",
]


def report(*, model: str = "some/model", failure: str | None = None) -> Report:
    scan = hand_made.measurements()
    failed = hand_made.run(
        Dtype.FLOAT16, "flash_attention_2", failure=failure, layers=(), logits=None
    )
    return judge(
        replace(
            scan,
            model=replace(scan.model, id=model),
            runs=(*scan.runs, *([failed] if failure else [])),
        ),
        version="0.1.0",
    )


def text(report: Report) -> str:
    return json.dumps(report.to_dict(), ensure_ascii=False)


@pytest.mark.parametrize("secret", SECRETS)
def test_tokens_are_left_out(secret: str) -> None:
    found = report(failure=f"401 for token {secret}, try again")
    assert secret in text(found)
    assert secret not in text(redacted(found))
    assert "[token], try again" in text(redacted(found))


def test_credentials_in_addresses_are_left_out() -> None:
    cleaned = text(redacted(report(failure="cannot open https://anna:s3cret@host/repo")))
    assert "s3cret" not in cleaned
    assert "https://[token]@host/repo" in cleaned


@pytest.mark.parametrize(
    ("path", "user"),
    [
        ("/home/anna/models/x", "anna"),
        ("/Users/anna.b/models/x", "anna.b"),
        (r"C:\Users\anna\models\x", "anna"),
    ],
)
def test_home_folders_and_the_names_in_them_are_left_out_everywhere(path: str, user: str) -> None:
    found = report(failure=f"cannot read {path}, owned by {user}, see annals")
    cleaned = text(redacted(found))
    assert user not in cleaned.replace("annals", "")
    assert "annals" in cleaned, "another word"
    assert not re.search(r"/home/|/Users/|Users", cleaned)


def test_the_owner_of_this_machine_is_left_out_wherever_the_home_is() -> None:
    found = report(failure="cannot read /data/people/anna/x as anna")
    cleaned = text(redacted(found, home="/data/people/anna", names=("anna",)))
    assert "anna" not in cleaned
    assert "cannot read ~/x as [user]" in cleaned


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        ("/data/secret-project/Qwen2-7B", "./Qwen2-7B"),
        ("../secret-project/Qwen2-7B/", "./Qwen2-7B"),
        (r"D:\secret-project\Qwen2-7B", "./Qwen2-7B"),
        ("Qwen/Qwen2-7B", "Qwen/Qwen2-7B"),
        ("demo:qwen2-eager", "demo:qwen2-eager"),
    ],
)
def test_a_local_folder_is_called_by_its_name(model: str, shown: str) -> None:
    cleaned = redacted(report(model=model))
    assert cleaned.model.id == shown
    assert "secret-project" not in text(cleaned)


def test_prompts_and_what_is_written_behind_them_are_left_out() -> None:
    prompt = "Our merger with Initech"
    scan = hand_made.measurements()
    written = Generation(
        probe="prompt_1",
        way=GREEDY,
        text="closes in May",
        num_tokens=3,
        first_difference=None,
        broken_step=None,
        overflow=None,
        error=None,
    )
    known = replace(written, probe="plain", text="Paris")
    scan = replace(
        scan,
        probes=(*scan.probes, Probe(name="prompt_1", kind="text", num_tokens=9, is_own=True)),
        runs=(replace(scan.runs[0], generations=(written, known)), *scan.runs[1:]),
        complete=False,
        incomplete_reason=f"could not read {prompt!r}",
    )
    cleaned = redacted(judge(scan, version="0.1.0"), prompts=(prompt,))
    assert [generation.text for generation in cleaned.runs[0].generations] == [
        PRIVATE_TEXT,
        "Paris",
    ]
    assert "Initech" not in text(cleaned)
    assert cleaned.incomplete_reason == "could not read '[prompt]'"


def test_words_of_the_report_stay() -> None:
    found = judge(hand_made.qwen2_eager(), version="0.1.0")
    assert redacted(found, names=("sdpa", "float16", "eager")).runs == found.runs
    assert redacted(found) == found


def test_nothing_is_left_out_unless_it_is_asked_for() -> None:
    found = report(model="/home/anna/x")
    assert "/home/anna/x" in RENDERERS[Format.JSON].render(found)
