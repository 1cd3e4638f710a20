"""Commands that work from a saved report: report, diff; and explain, env, which need none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from precheck import cli
from precheck.facts.findings import explanations
from precheck.judge import judge
from precheck.judge.findings.rules import RULES
from precheck.records.report import Report
from precheck.render import SUFFIXES, Format
from tests import hand_made

if TYPE_CHECKING:
    from collections.abc import Callable


EARLIER = Path(__file__).parent / "data" / "reports" / "earlier-1.json"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def precheck(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    def command(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["precheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        found = capsys.readouterr()
        assert "Traceback" not in found.err
        return Ended(int(ended.value.code or 0), found.out, found.err)

    return command


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save(judge(hand_made.qwen2_eager(), version="0.1.0"), tmp_path / "report.json")


def save(report: Report, path: Path) -> Path:
    path.write_text(json.dumps(report.to_dict()), encoding="utf-8")
    return path


def nested(depth: int) -> dict[str, Any]:
    return {"x": nested(depth - 1)} if depth else {}


def edited(saved: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    plain = json.loads(saved.read_text(encoding="utf-8"))
    change(plain)
    saved.write_text(json.dumps(plain), encoding="utf-8")
    return saved


# precheck report


@pytest.mark.parametrize("written_as", list(Format))
def test_a_saved_report_is_shown_in_every_format(
    precheck: Callable[..., Ended], saved: Path, written_as: Format
) -> None:
    ended = precheck("report", saved, "--format", written_as)
    assert ended.code == 0
    assert ended.err == ""
    assert "PC301" in ended.out or written_as in {Format.TABLE, Format.CARD}


def test_what_is_read_is_what_was_written(precheck: Callable[..., Ended], saved: Path) -> None:
    ended = precheck("report", saved, "--format", "json")
    assert json.loads(ended.out) == json.loads(saved.read_text(encoding="utf-8"))


def test_every_file_and_the_card_are_written(
    precheck: Callable[..., Ended], saved: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"again{suffix}" for suffix in SUFFIXES]
    card = tmp_path / "card.md"
    flags = [part for file in files for part in ("-o", file)]
    assert precheck("report", saved, *flags, "--card", card).code == 0
    assert all(file.stat().st_size for file in (*files, card))
    assert card.read_text(encoding="utf-8").startswith("---\ntags:")


def test_a_report_of_an_earlier_version_is_rendered(precheck: Callable[..., Ended]) -> None:
    for written_as in Format:
        ended = precheck("report", EARLIER, "--format", written_as)
        assert (ended.code, ended.err) == (0, "")


def test_a_report_of_a_later_minor_version_is_rendered(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    def add(plain: dict[str, Any]) -> None:
        plain["invented_later"] = {"x": 1}
        plain["precheck_version"] = "0.9.0"

    assert precheck("report", edited(saved, add)).code == 0


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "a newer major schema",
            '{"schema": "precheck/2", "precheck_version": "9.0"}',
            "precheck 9.0",
        ),
        ("another tool's", '{"version": "2.1.0", "runs": []}', "not a precheck report"),
        ("another tool's schema", '{"schema": "other/1", "runs": []}', "not a precheck report"),
        ("a list", "[1, 2]", "not a precheck report"),
        ("not JSON", "<html>", "report is not JSON"),
        ("empty", "", "report is not JSON"),
        ("NaN", '{"schema": NaN}', "NaN is not a JSON number"),
        ("too large a number", '{"schema": 1e999}', "too large"),
        ("nested without end", "[" * 100_000, "report is not JSON"),
    ],
)
def test_what_is_no_report_is_refused_with_3(
    precheck: Callable[..., Ended], tmp_path: Path, name: str, text: str, said: str
) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    ended = precheck("report", path)
    assert (ended.code, ended.out) == (3, ""), name
    assert said in ended.err
    assert ended.err.count("\n") == 2, "an error and a hint"


def test_a_truncated_report_is_refused_with_3_wherever_it_ends(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    whole = saved.read_bytes()
    for length in range(1, len(whole), len(whole) // 23):
        saved.write_bytes(whole[:length])
        ended = precheck("report", saved)
        assert (ended.code, ended.out) == (3, "")
        assert "report is not JSON" in ended.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda plain: plain.pop("model"), "model"),
        (lambda plain: plain["runs"][0].update(dtype="float8"), "$.runs[0].dtype"),
        (lambda plain: plain["runs"][3].update(verdict="fine"), "$.runs[3].verdict"),
        (lambda plain: plain["findings"][0].update(runs=[99]), "$.findings[0].runs"),
        (lambda plain: plain["findings"][0].update(runs=[-1]), "$.findings[0].runs"),
        (lambda plain: plain["headroom"][0].update(abs_max="large"), "$.headroom[0].abs_max"),
        (lambda plain: plain["headroom"][0].update(abs_max=10**400), "$.headroom[0].abs_max"),
        (
            lambda plain: plain["environment"].update(memory_bytes=10**400),
            "an integer of more than 9,007,199,254,740,992 - at `$.environment.memory_bytes`",
        ),
        (lambda plain: plain["headroom"][0].update(layer=10**25), "$.headroom[0].layer"),
        (lambda plain: plain["model"]["tensor_dtypes"].update(x=-(2**63)), "tensor_dtypes.x"),
        (lambda plain: plain["runs"][0].update(verdict="a\udc80"), "report not readable"),
        (lambda plain: plain["runs"][0].update(dtype="\ud83d"), "report not readable"),
        (lambda plain: plain["findings"][0].update(severity="\udfff"), "report not readable"),
        (lambda plain: plain["model"].update(quantization=nested(900)), "more than 64 levels"),
    ],
)
def test_a_hand_edited_report_is_refused_with_the_place(
    precheck: Callable[..., Ended],
    saved: Path,
    change: Callable[[dict[str, Any]], object],
    said: str,
) -> None:
    ended = precheck("report", edited(saved, change))
    assert (ended.code, ended.out) == (3, "")
    assert said in ended.err


@pytest.mark.parametrize("command", [["report", "A"], ["diff", "A", "A"], ["diff", "REAL", "A"]])
def test_a_report_that_is_not_there_is_3(
    precheck: Callable[..., Ended], saved: Path, command: list[str]
) -> None:
    missing = saved.with_name("missing.json")
    ended = precheck(*({"A": missing, "REAL": saved}.get(each, each) for each in command))
    assert ended.code == 3
    assert "cannot read report" in ended.err


def test_a_whole_report_of_another_major_schema_is_refused(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    def renumber(plain: dict[str, Any]) -> None:
        plain["schema"] = "precheck/2"

    ended = precheck("report", edited(saved, renumber))
    assert (ended.code, ended.out) == (3, "")
    assert "report schema not readable: 'precheck/2' (expected 'precheck/1')" in ended.err


def test_a_folder_is_no_report(precheck: Callable[..., Ended], tmp_path: Path) -> None:
    assert precheck("report", tmp_path).code == 3


# The gate of a saved report.


def test_a_report_is_only_gated_if_that_is_asked_for(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    assert precheck("report", saved).code == 0
    ended = precheck("report", saved, "--fail-on", "error", "--require", "float16+eager")
    assert ended.code == 1
    assert "FAIL: float16 + eager overflows" in ended.err
    assert precheck("report", saved, "--fail-on", "error").code == 0
    ended = precheck("report", saved, "--require", "float16+eager")
    assert ended.code == 1
    assert ended.err.startswith("FAIL: float16 + eager overflows in layer 3: ")


def test_a_saved_report_is_judged_again_for_another_gpu(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    t4 = precheck("report", saved, "--gpu", "T4", "--require", "bfloat16")
    assert t4.code == 1
    assert t4.err.startswith("FAIL: bfloat16 + sdpa on T4 should not be used: bfloat16 is only em")
    assert t4.out.startswith("✗ bfloat16 + sdpa on T4")
    a100 = precheck("report", saved, "--gpu", "A100", "--require", "bfloat16")
    assert (a100.code, a100.err) == (0, "PASS: bfloat16 + sdpa on A100 is safe\n")
    both = precheck("report", saved, "--gpu", "A100", "--gpu", "T4", "--format", "json")
    again = Report.from_dict(json.loads(both.out))
    assert [advised.target.name for advised in again.recommendations] == ["A100", "T4"]
    assert again.measurements == Report.from_dict(json.loads(saved.read_text())).measurements


def test_judged_again_for_the_same_devices_nothing_changes(
    precheck: Callable[..., Ended], saved: Path, tmp_path: Path
) -> None:
    for_t4 = tmp_path / "t4.json"
    assert precheck("report", saved, "--gpu", "T4", "-o", for_t4).code == 0
    again = precheck("report", for_t4, "--gpu", "T4", "--format", "json")
    assert Report.from_dict(json.loads(again.out)) == Report.from_dict(
        json.loads(for_t4.read_text())
    )


def test_a_gpu_that_nobody_knows_is_refused_for_a_saved_report_too(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    ended = precheck("report", saved, "--gpu", "T5000")
    assert (ended.code, ended.out) == (2, "")


@pytest.mark.parametrize(
    ("engine", "shows"),
    [
        ("vllm", "vllm serve ./qwen2-eager"),
        ("sglang", "sglang"),
        ("llama.cpp", "convert_hf_to_gguf.py ./qwen2-eager --outtype f16"),
        ("tgi", "text-generation-launcher"),
        ("transformers", 'dtype=torch.float16, attn_implementation="sdpa")'),
    ],
)
def test_one_command_is_shown_for_the_engine_that_is_asked_for(
    precheck: Callable[..., Ended], saved: Path, engine: str, shows: str
) -> None:
    out = precheck("report", saved, "--gpu", "T4", "--for", engine).out
    _, _, use = out.partition("\n  use ")
    assert shows in use.partition("\n  next ")[0]


def test_an_engine_is_misspelt(precheck: Callable[..., Ended], saved: Path) -> None:
    assert precheck("report", saved, "--for", "vlm").code == 2


def test_a_report_is_opened_as_html(
    precheck: Callable[..., Ended], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def browse(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr("webbrowser.open", browse)
    ended = precheck("report", saved, "--open")
    assert ended.code == 0
    (address,) = opened
    page = Path(address.removeprefix("file://"))
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert ended.err == f"wrote {page}\n"


def test_a_baseline_written_from_a_report_lets_it_pass_once_it_has_reasons(
    precheck: Callable[..., Ended], saved: Path, tmp_path: Path
) -> None:
    baseline = tmp_path / "known.toml"
    gate = ("report", saved, "--fail-on", "error", "--require", "float16+eager")
    assert precheck("report", saved, "-o", baseline).code == 0
    ended = precheck(*gate, "--baseline", baseline)
    assert (ended.code, ended.out) == (3, "")
    assert "has no reason" in ended.err
    filled = baseline.read_text(encoding="utf-8").replace('reason = ""', 'reason = "we use sdpa"')
    baseline.write_text(filled, encoding="utf-8")
    ended = precheck(*gate, "--baseline", baseline, "-v")
    assert ended.code == 0
    assert "accepted: we use sdpa" in ended.out

    def another_operation(plain: dict[str, Any]) -> None:
        plain["findings"][0]["op"] = "aten.mul"

    new = edited(saved, another_operation)
    assert precheck("report", new, *gate[2:], "--baseline", baseline).code == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[accept]]\ncode = "XY123"\nreason = "x"\n', "unknown finding code 'XY123'"),
        ("not = [toml", "baseline not readable"),
        (None, "cannot read baseline"),
    ],
)
def test_a_baseline_that_is_wrong_is_3(
    precheck: Callable[..., Ended], saved: Path, tmp_path: Path, text: str | None, said: str
) -> None:
    baseline = tmp_path / "known.toml"
    if text is not None:
        baseline.write_text(text, encoding="utf-8")
    ended = precheck("report", saved, "--baseline", baseline)
    assert (ended.code, ended.out) == (3, "")
    assert said in ended.err


# Redaction.


def test_markdown_leaves_out_what_is_private_and_json_does_not(
    precheck: Callable[..., Ended], saved: Path
) -> None:
    def move(plain: dict[str, Any]) -> None:
        plain["model"]["id"] = "/home/anna/models/Qwen2"

    private = edited(saved, move)
    shown = {
        (written_as, flag): "anna" in precheck("report", private, "--format", written_as, *flag).out
        for written_as in Format
        for flag in ((), ("--redact",), ("--no-redact",))
        if written_as is not Format.BASELINE
    }
    assert not any(shown[each, ("--redact",)] for each in Format if each is not Format.BASELINE)
    assert not shown[Format.MARKDOWN, ()]
    assert not shown[Format.CARD, ()]
    assert shown[Format.JSON, ()]
    assert shown[Format.HTML, ()]
    assert shown[Format.MARKDOWN, ("--no-redact",)]


# precheck diff


def test_diff_of_a_report_with_itself_is_0_and_with_another_is_1(
    precheck: Callable[..., Ended], saved: Path, tmp_path: Path
) -> None:
    ended = precheck("diff", saved, saved)
    assert (ended.code, ended.err) == (0, "")
    assert "no difference" in ended.out
    healthy = save(judge(hand_made.measurements(), version="0.1.0"), tmp_path / "healthy.json")
    ended = precheck("diff", healthy, saved)
    assert ended.code == 1
    assert "PC301" in ended.out
    found = json.loads(precheck("diff", healthy, saved, "--format", "json").out)
    assert [each["code"] for each in found["new"]] == ["PC301", "PC201"]


# precheck explain, env


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_every_code_is_explained_offline(precheck: Callable[..., Ended], rule: object) -> None:
    code = rule.code  # type: ignore[attr-defined]
    ended = precheck("explain", code.lower())
    assert ended.code == 0
    assert ended.out.startswith(f"{code}: {explanations()[code].title}")
    for part in ("Example.", "Cause.", "Cure.", "What does not help.", "Sources."):
        assert part in ended.out


def test_codes_are_listed(precheck: Callable[..., Ended]) -> None:
    ended = precheck("explain")
    assert all(rule.code in ended.out for rule in RULES)


def test_a_number_is_a_code_and_a_word_is_looked_for(precheck: Callable[..., Ended]) -> None:
    assert precheck("explain", "301").out == precheck("explain", "PC301").out
    found = precheck("explain", "Overflow").out
    assert "PC101" in found
    assert "PC201" not in found
    ended = precheck("explain", "xyzzy")
    assert ended.code == 2
    assert "no finding mentions 'xyzzy'" in ended.err


def test_what_people_see_is_explained(precheck: Callable[..., Ended]) -> None:
    ended = precheck("explain", "!!!!!!")
    assert ended.code == 0
    assert "Run first:" in ended.out
    assert 'precheck scan MODEL --prompt "the prompt that fails" --builtin-probes' in ended.out
    assert "PC620" in ended.out
    assert "null embeddings" in precheck("explain").out
    ended = precheck("explain", "null embedings")
    assert ended.code == 2
    assert "did you mean 'null embeddings" in ended.err


def test_an_unknown_code_is_usage(precheck: Callable[..., Ended]) -> None:
    ended = precheck("explain", "PC399")
    assert (ended.code, ended.out) == (2, "")
    assert "PC301" in ended.err, "those that are near"


def test_devices_as_json(precheck: Callable[..., Ended]) -> None:
    listed = json.loads(precheck("gpus", "--json").out)
    assert listed["here"]
    assert listed["known"]["sm_75"]["float16"] == "native"
    one = json.loads(precheck("gpus", "T4", "--json").out)
    assert (one["name"], one["bfloat16"]) == ("T4", "emulated")


def test_env_tells_what_a_bug_report_needs(precheck: Callable[..., Ended]) -> None:
    ended = precheck("env")
    assert ended.code == 0
    for part in ("precheck", "torch", "transformers", "Python", "platform", "device"):
        assert f"- {part}: " in ended.out


def test_reading_reports_imports_no_torch(saved: Path) -> None:
    code = (
        "import sys\nfrom precheck import cli\n"
        f"sys.argv = ['precheck', 'report', {str(saved)!r}, '--format', 'html']\n"
        "try:\n    cli.main()\nexcept SystemExit as ended:\n    assert not ended.code\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)  # noqa: S603
