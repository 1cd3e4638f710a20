"""The command line: what it accepts, what it prints where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precheck import cli, pipeline
from precheck.commands.saving import Saving
from precheck.errors import (
    CheckpointAccessError,
    ExitCode,
    ScanInterrupted,
    UnsupportedModelError,
    UsageError,
)
from precheck.records.configuration import Configuration
from precheck.records.finding import Verdict
from precheck.records.outcomes.coverage import Coverage
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement, Step
from precheck.records.report import Device, Environment, ModelFacts, Report, Run
from precheck.records.stored import CheckpointAudit
from precheck.records.traces import Probe
from precheck.render import Format
from precheck.served.request import NUM_GENERATED, VerifyRequest
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.outcomes.served import Served


def run(verdict: Verdict, *, dtype: Dtype = Dtype.FLOAT16, attn: str = "sdpa") -> Run:
    return Run(
        dtype=dtype,
        attn_implementation=attn,
        requested_attn_implementation=attn,
        device="cpu",
        layers=hand_made.layers(),
        verdict=verdict,
    )


def report_of(*runs: Run, complete: bool = True) -> Report:
    return Report(
        precheck_version="0.1.0",
        complete=complete,
        incomplete_reason=None if complete else "stopped",
        seed=0,
        model=ModelFacts(
            id="some/model",
            revision=None,
            architecture="LlamaForCausalLM",
            model_type="llama",
            decoder_layers="model.layers",
            num_decoder_layers=2,
            num_parameters=1000,
            declared_dtype="float16",
            tensor_dtypes={"float16": 1000},
            default_attn_implementation="sdpa",
        ),
        checkpoint=CheckpointAudit(),
        environment=Environment(
            python="3.11.9",
            platform="Linux",
            cpu="some CPU",
            num_threads=2,
            memory_bytes=2**33,
            libraries={"torch": "2.13.0"},
            devices=(Device(name="some CPU", kind="cpu"),),
        ),
        probes=(Probe(name="long", kind="text", num_tokens=64),),
        coverage=Coverage(longest_probe_tokens=64, num_tokens=64),
        runs=(*runs, run(Verdict.SAFE, dtype=Dtype.FLOAT32)),
        headroom=(),
        findings=(),
        recommendation=None,
    )


SAFE = report_of(run(Verdict.SAFE))
BROKEN = report_of(run(Verdict.OVERFLOW))


class Ended:
    """One run of the command line in this process."""

    def __init__(self, code: int, out: str, err: str, asked: dict[str, Any]) -> None:
        self.code = code
        self.out = out
        self.err = err
        self.asked = asked


def a_step() -> Step:
    return Step(
        run="float16 + sdpa",
        unit="model.layers.0",
        share=0.25,
        seconds_left=90.0,
        bytes_read=1 << 20,
        total_bytes=4 << 20,
    )


class Shell:
    """Runs the command line with a scan that gives, or raises, what the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: str | Path, scan: Report | BaseException = SAFE) -> Ended:
        asked: dict[str, Any] = {}

        def scanned(model: str, **options: Any) -> Report:
            asked.update(options, model=model)
            options["observe"](Announcement(text="about to scan 64 tokens"))
            options["observe"](a_step())
            if isinstance(scan, BaseException):
                raise scan
            return scan

        self.monkeypatch.setattr(pipeline, "scan", scanned)
        self.monkeypatch.setattr(sys, "argv", ["precheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = self.capsys.readouterr()
        return Ended(end.value.code or 0, captured.out, captured.err, asked)  # type: ignore[arg-type]


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["scan", "--help"], ["scan"], ["scan", "m", "--dtype", "int7"]],
    ids=" ".join,
)
def test_answers_without_importing_torch(arguments: list[str]) -> None:
    program = (
        "import contextlib, sys; from precheck.cli import main\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "sys.exit(bool(sys.modules.keys() & {'torch', 'transformers', 'accelerate'}))"
    )
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program, *arguments], capture_output=True, check=False
    )
    assert ran.returncode == 0


def test_version_is_that_of_the_package(shell: Shell) -> None:
    assert shell("--version").out == "precheck 0.1.0\n"


@pytest.mark.parametrize(
    ("report", "arguments", "code"),
    [
        (SAFE, [], ExitCode.GATE_HOLDS),
        (BROKEN, [], ExitCode.GATE_FAILS),
        (BROKEN, ["--fail-on", "never"], ExitCode.GATE_HOLDS),
        (report_of(run(Verdict.LOW_HEADROOM)), [], ExitCode.GATE_HOLDS),
        (
            report_of(run(Verdict.LOW_HEADROOM)),
            ["--fail-on", "warning"],
            ExitCode.GATE_FAILS,
        ),
        (
            report_of(run(Verdict.SAFE), run(Verdict.OVERFLOW, attn="eager")),
            [],
            ExitCode.GATE_HOLDS,
        ),
        (
            report_of(run(Verdict.SAFE), run(Verdict.OVERFLOW, attn="eager")),
            ["--require", "fp16+eager"],
            ExitCode.GATE_FAILS,
        ),
        (report_of(run(Verdict.SAFE), complete=False), [], ExitCode.INCOMPLETE),
        (
            report_of(run(Verdict.OVERFLOW), complete=False),
            ["--fail-on", "never"],
            ExitCode.INCOMPLETE,
        ),
    ],
)
def test_exit_code_says_whether_the_gate_holds(
    shell: Shell, report: Report, arguments: list[str], code: ExitCode
) -> None:
    assert shell("scan", "some/model", *arguments, scan=report).code == code


def test_stdout_is_the_report_and_nothing_else(shell: Shell) -> None:
    ended = shell("scan", "some/model", "--format", "json")
    assert Report.from_dict(json.loads(ended.out)) == SAFE
    assert "about to scan 64 tokens" in ended.err


def test_table_names_the_model_without_colour_codes(shell: Shell) -> None:
    ended = shell("scan", "some/model", scan=BROKEN)
    assert "some/model" in ended.out
    assert "\x1b" not in ended.out


def test_progress_off_a_terminal_is_the_announcements_only(shell: Shell) -> None:
    announced, *gate = shell("scan", "some/model").err.splitlines()
    assert announced == "about to scan 64 tokens"
    assert [each.split(":")[0] for each in gate] == ["PASS"]


def test_says_why_the_gate_fails(shell: Shell) -> None:
    assert "FAIL: float16 + sdpa overflows" in shell("scan", "m", scan=BROKEN).err


def test_quiet_says_only_whether_it_passes(shell: Shell) -> None:
    ended = shell("scan", "some/model", "--quiet", scan=BROKEN)
    assert (ended.out, ended.err) == ("", "FAIL: float16 + sdpa overflows\n")
    ended = shell("scan", "some/model", "--quiet", scan=SAFE)
    assert (ended.out, ended.err) == ("", "PASS: float16 + sdpa is safe\n")


@pytest.mark.parametrize("written_as", [each for each in Format if each is not Format.TABLE])
def test_quiet_changes_no_byte_of_what_a_program_reads(shell: Shell, written_as: Format) -> None:
    loud = shell("scan", "some/model", "--format", written_as, scan=BROKEN)
    quiet = shell("scan", "some/model", "--format", written_as, "--quiet", scan=BROKEN)
    assert loud.out
    assert quiet.out == loud.out


def test_defaults_are_three_dtypes_and_the_models_attention(shell: Shell) -> None:
    asked = shell("scan", "some/model").asked
    assert asked["dtypes"] == tuple(Dtype)
    assert asked["attn_implementations"] is None
    assert asked["prompts"] is None
    assert (asked["trust_remote_code"], asked["allow_pickle"]) == (False, False)


def test_flags_arrive_at_the_scan(shell: Shell) -> None:
    asked = shell(
        *("scan", "some/model", "--revision", "abc", "--dtype", "fp16, float32,fp16"),
        *("--attn", "sdpa,eager", "--device", "cpu", "--gpu", "T4", "--gpu", "sm_80"),
        *("--prompt", "one", "--prompt", "two", "--builtin-probes", "--quick"),
        *("--require", "bf16+sdpa", "--trust-remote-code", "--allow-pickle"),
        *(
            "--max-memory",
            "1.5GiB",
            "--resident",
            "--prove",
            "--prove-minutes",
            "0.5",
            "--accumulation",
            "float16",
            "--generate",
            "5",
        ),
        *("--kv-cache-dtype", "fp8,int8", "--quantization", "int4"),
        *("--context", "8192", "--static", "--full", "--stream", "--capsule", "folder"),
    ).asked
    assert asked.pop("observe")
    assert asked == {
        "model": "some/model",
        "revision": "abc",
        "dtypes": (Dtype.FLOAT16, Dtype.FLOAT32),
        "attn_implementations": ("sdpa", "eager"),
        "device": "cpu",
        "gpus": ("T4", "sm_80"),
        "prompts": ("one", "two"),
        "builtin_probes": True,
        "quick": True,
        "context": 8192,
        "max_memory": 3 << 29,
        "resident": True,
        "prove": True,
        "prove_minutes": 0.5,
        "accumulations": ("float16",),
        "kv_cache_dtypes": ("fp8", "int8"),
        "quantizations": ("int4",),
        "generate": 5,
        "static": True,
        "full": True,
        "stream": True,
        "capsule": Path("folder"),
        "require": (Configuration(dtype=Dtype.BFLOAT16, attn_implementation="sdpa"),),
        "trust_remote_code": True,
        "allow_pickle": True,
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "float8"], "unknown dtype: 'float8'"),
        (["--dtype", "float16,"], "empty name in --dtype"),
        (["--attn", "sdpa,,eager"], "empty name in --attn"),
        (["--require", "float16+"], "not a configuration: 'float16+'"),
        (["--max-memory", "plenty"], "not a size: 'plenty' for --max-memory"),
        (["--max-memory", "0"], "not a size: '0' for --max-memory"),
        (["--max-memory", "-4GiB"], "not a size: '-4GiB' for --max-memory"),
        (["--require", "int8+sdpa"], "unknown dtype: 'int8'"),
        (["--prompt", ""], "empty prompt"),
        (["--context", "-8k"], "--context: '-8k' (expected a number of tokens, or max)"),
        (["--prompts", "absent.txt"], "cannot read prompts file: 'absent.txt'"),
        (["--save-logits", "absent/file"], "output folder does not exist"),
        (["--save-logits", "file", "--static"], "log-probabilities to save, with static"),
        (["-o", "report.docx"], "unknown report format: 'report.docx'"),
        (["-o", "absent/report.json"], "output folder does not exist"),
        (["--require-proof", "score"], "unknown mechanism: 'score'"),
        (["--fail-on", "sometimes"], "sometimes"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
    ids=lambda each: "=".join(each) if isinstance(each, list) else "",
)
def test_refuses_what_it_cannot_use_before_scanning(
    shell: Shell, tmp_path: Path, arguments: list[str], said: str
) -> None:
    shell.monkeypatch.chdir(tmp_path)
    ended = shell("scan", "some/model", *arguments)
    assert ended.code == ExitCode.USAGE
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert (ended.asked, ended.out, list(tmp_path.iterdir())) == ({}, "", [])


def test_flags_arrive_at_what_a_scan_saves(shell: Shell, tmp_path: Path) -> None:
    saved: list[tuple[Saving, Report]] = []
    shell.monkeypatch.setattr(Saving, "save", lambda self, report: saved.append((self, report)))
    file = tmp_path / "file"
    flags = ("--prompt", "one", "--generate", "5", "--device", "cpu", "--max-memory", "1GiB")
    more = ("--trust-remote-code", "--allow-pickle", "--quiet")
    assert shell("scan", "some/model", "--save-logits", file, *flags, *more).code == 0
    request = VerifyRequest(
        dtypes=(Dtype.FLOAT32,),
        prompts=("one",),
        num_generated=5,
        device="cpu",
        max_memory=1 << 30,
        trust_remote_code=True,
    )
    expected = Saving(model="some/model", path=file, request=request, allow_pickle=True, quiet=True)
    assert saved == [(expected, SAFE)]
    shell("scan", "some/model", "--save-logits", file)
    assert saved[-1][0].request.num_generated == NUM_GENERATED


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What arrives at the comparison, which ends there."""
    asked: dict[str, Any] = {}

    def compared(url: str, model: str, **options: Any) -> Served:
        asked.update(options, url=url, model=model)
        raise UsageError("arrived")

    monkeypatch.setattr("precheck.served.verify.verify", compared)
    return asked


def test_flags_arrive_at_verify(shell: Shell, verified: dict[str, Any], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps(SAFE.to_dict()), encoding="utf-8")
    shell.monkeypatch.setenv("A_KEY", "secret")
    ended = shell(
        *("verify", "http://host:1", "some/model", "--served-model", "name"),
        *("--api-key-env", "A_KEY", "--timeout", "5", "--retries", "1", "--concurrency", "2"),
        *("--revision", "abc", "--dtype", "fp16,auto", "--attn", "sdpa,eager", "--device", "cpu"),
        *("--kv-cache-dtype", "int8", "--quantization", "int4", "--max-memory", "1GiB"),
        *("--trust-remote-code", "--prompt", "one", "--generate", "5"),
        *("--require", "bf16+sdpa", "--report", report),
    )
    assert "error: arrived" in ended.err
    assert verified.pop("observe")
    assert verified == {
        "url": "http://host:1",
        "model": "some/model",
        "report": SAFE,
        "logits": None,
        "request": VerifyRequest(
            dtypes=(Dtype.FLOAT16, "auto"),
            attn_implementations=("sdpa", "eager"),
            kv_cache_dtypes=("int8",),
            quantizations=("int4",),
            measured=(
                Configuration(dtype=Dtype.BFLOAT16, attn_implementation="sdpa"),
                *SAFE.deployable,
            ),
            prompts=("one",),
            num_generated=5,
            served_model="name",
            concurrency=2,
            seconds=5.0,
            retries=1,
            key="secret",
            device="cpu",
            max_memory=1 << 30,
            revision="abc",
            trust_remote_code=True,
        ),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dtype", "float8"], "unknown dtype: 'float8'"),
        (["--attn", "sdpa,,eager"], "empty name in --attn"),
        (["--require", "float16+"], "not a configuration: 'float16+'"),
        (["--kv-cache-dtype", "fp9"], "fp9"),
        (["--quantization", "int3x"], "int3x"),
        (["--max-memory", "0"], "not a size: '0' for --max-memory"),
        (["--timeout", "0"], "--timeout"),
        (["--retries", "-1"], "--retries"),
        (["--concurrency", "0"], "--concurrency"),
        (["--generate", "0"], "--generate"),
        (["--prompt", ""], "empty prompt"),
        (["--prompts", "absent.txt"], "cannot read prompts file: 'absent.txt'"),
        (["--api-key-env", "A_KEY"], "the key in A_KEY is not printable ASCII"),
        (["-o", "bug.docx"], "unknown format of a served run: 'bug.docx'"),
        (["-o", "absent/bug.md"], "output folder does not exist"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
    ids=lambda each: "=".join(each) if isinstance(each, list) else "",
)
def test_verify_refuses_what_it_cannot_use_before_asking(
    shell: Shell, verified: dict[str, Any], tmp_path: Path, arguments: list[str], said: str
) -> None:
    shell.monkeypatch.chdir(tmp_path)
    shell.monkeypatch.setenv("A_KEY", "schl\u00fcssel")
    ended = shell("verify", "http://host:1", "some/model", *arguments)
    assert ended.code == ExitCode.USAGE
    assert said in ended.err
    assert "schl" not in ended.err
    assert "Traceback" not in ended.err
    assert (verified, ended.out, list(tmp_path.iterdir())) == ({}, "", [])


def test_refuses_an_output_that_is_a_folder(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "report.json"
    folder.mkdir()
    ended = shell("scan", "some/model", "-o", folder)
    assert (ended.code, ended.asked) == (ExitCode.USAGE, {})
    assert "not a regular file" in ended.err


def test_refuses_an_output_folder_that_is_not_writable(shell: Shell, tmp_path: Path) -> None:
    # Root may write anywhere, so the answer of the system is replaced.
    shell.monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    ended = shell("scan", "some/model", "-o", tmp_path / "report.json")
    assert (ended.code, ended.asked) == (ExitCode.USAGE, {})
    assert "output is not writable" in ended.err


def test_writes_every_output_also_when_the_gate_fails(shell: Shell, tmp_path: Path) -> None:
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    ended = shell("scan", "some/model", "-o", files[0], "--output", files[1], scan=BROKEN)
    assert ended.code == ExitCode.GATE_FAILS
    assert [Report.from_dict(json.loads(file.read_text())) for file in files] == [BROKEN, BROKEN]
    assert sorted(tmp_path.iterdir()) == files


def test_a_write_that_fails_leaves_the_old_file(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")

    def full(descriptor: int, *_: object, **__: object) -> None:
        os.write(descriptor, b"{")
        os.close(descriptor)
        raise OSError(28, "No space left on device")

    shell.monkeypatch.setattr(os, "fdopen", full)
    ended = shell("scan", "some/model", "-o", file)
    assert ended.code == ExitCode.USAGE
    assert "No space left on device" in ended.err
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


def test_an_output_that_is_a_link_stays_one(shell: Shell, tmp_path: Path) -> None:
    file, link = tmp_path / "file.json", tmp_path / "link.json"
    file.write_text("old")
    link.symlink_to(file)
    assert shell("scan", "some/model", "-o", link).code == ExitCode.GATE_HOLDS
    assert link.is_symlink()
    assert json.loads(file.read_text())["schema"] == "precheck/1"


def test_an_error_is_two_lines_and_its_exit_code(shell: Shell) -> None:
    ended = shell("scan", "m", scan=CheckpointAccessError("gated: 'm'", hint="hf auth login"))
    assert ended.code == ExitCode.INCOMPLETE
    assert ended.err.endswith("error: gated: 'm'\nhint: hf auth login\n")
    assert "Traceback" not in ended.err


def test_an_error_without_a_hint_is_one_line(shell: Shell) -> None:
    ended = shell("scan", "m", "--quiet", scan=UsageError("device not present: 'cuda:7'"))
    assert (ended.code, ended.err) == (ExitCode.USAGE, "error: device not present: 'cuda:7'\n")


def test_debug_shows_the_traceback_of_an_error(shell: Shell) -> None:
    ended = shell("scan", "m", "--debug", scan=UnsupportedModelError("no repeated block"))
    assert ended.code == ExitCode.INCOMPLETE
    assert "Traceback" in ended.err


def test_a_bug_is_70_and_asks_for_a_report(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    ended = shell("scan", "m", "-o", file, scan=ZeroDivisionError("division by zero"))
    assert ended.code == ExitCode.BUG
    assert "bug in precheck: ZeroDivisionError: division by zero" in ended.err
    assert "--debug" in ended.err
    assert "Traceback" not in ended.err
    assert not file.exists()
    assert "Traceback" in shell("scan", "m", "--debug", scan=ZeroDivisionError()).err


def test_ctrl_c_writes_what_was_measured(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    partial = replace(SAFE, complete=False, incomplete_reason="interrupted")
    ended = shell("scan", "m", "-o", file, scan=ScanInterrupted(partial))
    assert (ended.code, ended.out) == (ExitCode.INTERRUPTED, "")
    assert json.loads(file.read_text())["complete"] is False
    assert str(file) in ended.err


def test_ctrl_c_before_anything_was_measured_writes_nothing(shell: Shell, tmp_path: Path) -> None:
    ended = shell("scan", "m", "-o", tmp_path / "report.json", scan=KeyboardInterrupt())
    assert (ended.code, ended.out, list(tmp_path.iterdir())) == (ExitCode.INTERRUPTED, "", [])


def test_a_reader_that_went_away_does_not_change_the_answer(tmp_path: Path) -> None:
    program = (
        "import sys, test_cli; from precheck import cli, pipeline\n"
        "pipeline.scan = lambda model, **options: test_cli.BROKEN\n"
        "cli.main()"
    )
    file = tmp_path / "report.json"
    read_end, write_end = os.pipe()
    os.close(read_end)
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", program, "scan", "m", "-o", file],
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    os.close(write_end)
    assert ran.returncode == ExitCode.GATE_FAILS
    assert "BrokenPipe" not in ran.stderr
    assert file.exists()


@pytest.mark.parametrize(
    ("name", "content", "prompts"),
    [
        ("p.txt", "one\n\n  two \r\n{three\n", ("one", "  two ", "{three")),
        ("p.txt", "a\u2028b", ("a\u2028b",)),
        ("p.txt", "\ufeff上海", ("上海",)),
        (
            "p.jsonl",
            '{"text": "one\\ntwo"}\n\n{"token_ids": [0, 5]}\n',
            ("one\ntwo", (0, 5)),
        ),
    ],
)
def test_reads_a_prompts_file(
    shell: Shell, tmp_path: Path, name: str, content: str, prompts: tuple[object, ...]
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8", newline="")
    ended = shell("scan", "m", "--prompts", file, "--prompt", "first")
    assert ended.asked["prompts"] == ("first", *prompts)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", b"", "prompts file is empty"),
        ("p.txt", b" \n\n", "prompts file is empty"),
        ("p.txt", b"ok\n\xff\xfe", "not UTF-8"),
        ("p.jsonl", b'{"text": "ok"}\n{"text": ', "line 2: not JSON"),
        ("p.jsonl", b'{"text": "ok", "images": []}', "line 1: not a prompt"),
        ("p.jsonl", b'\n"text"', "line 2: not a prompt"),
        ("p.jsonl", b'{"text": ""}', "line 1: not a prompt"),
        ("p.jsonl", b'{"txt": "typo"}', "line 1: not a prompt"),
        ("p.jsonl", b'{"text": "a", "token_ids": [1]}', "line 1: not a prompt"),
        ("p.jsonl", b'{"token_ids": []}', "line 1: not a prompt"),
        ("p.jsonl", b'{"token_ids": [1, true]}', "something other than token ids"),
        ("p.jsonl", b'{"token_ids": [-1]}', "something other than token ids"),
    ],
)
def test_refuses_a_prompts_file(
    shell: Shell, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    ended = shell("scan", "m", "--prompts", file)
    assert (ended.code, ended.asked) == (ExitCode.USAGE, {})
    assert said in ended.err


def test_refuses_a_folder_as_prompts_file(shell: Shell, tmp_path: Path) -> None:
    ended = shell("scan", "m", "--prompts", tmp_path)
    assert (ended.code, ended.asked) == (ExitCode.USAGE, {})


def test_demo_lists_the_built_in_models(shell: Shell) -> None:
    assert "demo:qwen2-eager" in shell("demo").out


def test_demo_saves_a_checkpoint(shell: Shell, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    assert shell("demo", "qwen2-eager", "-o", folder).code == 0
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "-o", "x"], "unknown built-in model: 'nothing'"),
        (["qwen2-eager"], "no folder"),
        (["qwen2-eager", "-o", "."], "not empty"),
        (["qwen2-eager", "-o", "file"], "not empty"),
    ],
)
def test_demo_refuses(shell: Shell, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "file").write_text("precious")
    shell.monkeypatch.chdir(tmp_path)
    ended = shell("demo", *arguments)
    assert ended.code == ExitCode.USAGE
    assert said in ended.err
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_scans_a_built_in_model_as_a_person_would(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-m", "precheck", "scan", "demo:qwen2-eager", "--quick", "-o", file],
        capture_output=True,
        check=False,
        text=True,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert ran.returncode == ExitCode.GATE_HOLDS, ran.stderr
    assert "PASS: bfloat16 + sdpa is safe" in ran.stderr
    assert "only with eager attention: float16 overflows in layer 3" in ran.stdout
    assert Report.from_dict(json.loads(file.read_text())).complete


PRESSES_CTRL_C = """
import contextlib, os, signal
from precheck import cli
from precheck.commands import terminal
from precheck.records.progress import Step

# A shell that runs the tests in the background has Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
pressed = []

def press(event):
    if isinstance(event, Step) and event.share > 0 and not pressed:
        pressed.append(event)
        os.kill(os.getpid(), signal.SIGINT)

terminal.progress = lambda *, quiet: contextlib.nullcontext(press)
cli.main()
"""


def test_ctrl_c_in_a_real_scan_leaves_a_whole_partial_report(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", PRESSES_CTRL_C, "scan", "demo:qwen2-eager", "-o", file],
        capture_output=True,
        check=False,
        text=True,
        timeout=300,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert (ran.returncode, ran.stdout) == (ExitCode.INTERRUPTED, "")
    assert "Traceback" not in ran.stderr
    assert not Report.from_dict(json.loads(file.read_text())).complete
