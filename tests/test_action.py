"""The GitHub Action, its steps run here as the runner would run them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from precheck.saved import read_report
from tests.render.workflow_commands import Command, acted_on
from tests.served.engines import Engine, serving
from tests.test_docs import blocks, first_column, section
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "action.yml").read_text(encoding="utf-8")
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
ACTION: dict[str, Any] = yaml.safe_load(TEXT)
STEPS: list[dict[str, Any]] = ACTION["runs"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ (github\.action_path|(?:inputs|steps\.\w+\.outputs)\.[\w-]+) \}\}")
HOSTILE = "$(touch touched)\"'; touch touched #`touch touched`\n::add-mask::a\n##[add-mask]b % \\"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """One step that ran."""

    code: int
    output: str
    outputs: dict[str, str]
    summary: str

    @property
    def commands(self) -> list[Command]:
        return acted_on(self.output)


class Runner:
    """Runs one step of the action in a folder of its own, as ``shell: bash`` does."""

    def __init__(self, folder: Path) -> None:
        self.workspace, self.temporary = folder / "workspace", folder / "temporary"
        self.bin = folder / "bin"
        for each in (self.workspace, self.temporary, self.bin):
            each.mkdir()
        self.executable("precheck", f'exec "{sys.executable}" -m precheck "$@"')
        self.executable("python", f'exec "{sys.executable}" "$@"')

    def executable(self, name: str, script: str) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def __call__(self, identity: str, inputs: Mapping[str, str], **known: str) -> Ended:
        (step,) = (each for each in STEPS if each.get("id") == identity)
        known = {
            "steps.install.outputs.bin": str(self.bin),
            "github.action_path": str(ROOT),
            **known,
        }
        known |= {
            f"inputs.{name}": str(inputs.get(name, declared.get("default", "")))
            for name, declared in ACTION["inputs"].items()
        }
        script, output, summary = (
            self.temporary / name for name in ("script.sh", "output", "summary")
        )
        script.write_text(step["run"], encoding="utf-8")
        output.touch()
        summary.touch()
        ran = subprocess.run(  # noqa: S603  our own script
            ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.workspace,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ
            | {name: evaluated(each, known) for name, each in step["env"].items()}
            | {
                "PYTHONPATH": str(ROOT),
                "RUNNER_TEMP": str(self.temporary),
                "GITHUB_OUTPUT": str(output),
                "GITHUB_STEP_SUMMARY": str(summary),
            },
        )
        return Ended(
            code=ran.returncode,
            output=ran.stdout.decode(),
            outputs=outputs_in(output.read_text(encoding="utf-8")),
            summary=summary.read_text(encoding="utf-8"),
        )

    def scan(self, **inputs: str) -> Ended:
        """The step that does it."""
        named = {name.replace("_", "-"): value for name, value in inputs.items()}
        return self("scan", {"args": "--quick", **named})

    def verify(self, **inputs: str) -> Ended:
        """The step after it, for an engine."""
        named = {name.replace("_", "-"): value for name, value in inputs.items()}
        reports = self.workspace / "reports"
        reports.mkdir(exist_ok=True)
        return self("verify", named, **{"steps.scan.outputs.report": str(reports)})


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    folder = tmp_path / "served"
    return Engine(folder=save_checkpoint(tiny("qwen2", num_layers=2), folder, tokenizer=True))


def evaluated(expression: str, known: Mapping[str, str]) -> str:
    named = EXPRESSION.fullmatch(expression)
    assert named, expression
    return known[named[1]]


def outputs_in(text: str) -> dict[str, str]:
    """What a step wrote to ``GITHUB_OUTPUT``: ``name=value`` and ``name<<END`` with its lines."""
    blocks = re.findall(
        r"^([\w-]+)(?:=([^\n]*)|<<(\w+)\n(.*?)\n\3)$", text, re.DOTALL | re.MULTILINE
    )
    return {name: value or lines for name, value, _, lines in blocks}


# What the file says.


def test_no_input_is_pasted_into_a_script() -> None:
    scripts = [step for step in STEPS if "run" in step]
    assert len(scripts) == 4
    for step in scripts:
        assert "${{" not in step["run"]
        assert all(EXPRESSION.fullmatch(value) for value in step["env"].values())


def test_every_input_is_described_and_used() -> None:
    for name, declared in ACTION["inputs"].items():
        assert declared["description"].strip().endswith("."), name
        assert f"${{{{ inputs.{name} }}}}" in TEXT
    assert [name for name, declared in ACTION["inputs"].items() if declared.get("required")] == [
        "model"
    ]


@pytest.mark.parametrize(("text", "number"), [(TEXT, 2), (PAGE, 4)], ids=["action", "page"])
def test_actions_are_pinned_to_a_commit_and_say_its_version(text: str, number: int) -> None:
    used = [each for each in re.findall(r"uses: (.*)", text) if each != "./precheck"]
    assert len(used) == number
    pinned = r"(actions|github)/[\w/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+"
    assert all(re.fullmatch(pinned, each) for each in used)


def test_the_page_tells_every_input_and_uses_what_there_is() -> None:
    listed = first_column(section(PAGE, "GitHub Actions"))
    assert listed == ["input", *ACTION["inputs"]]
    recipe, of_engine = blocks(PAGE, language="yaml")
    steps = yaml.safe_load(recipe)["jobs"]["precheck"]["steps"]
    (ours,) = (step for step in steps if step["uses"] == "./precheck")
    named = ours["with"].keys() | yaml.safe_load(of_engine)[1]["with"].keys()
    assert ACTION["inputs"].keys() >= named
    outputs = re.findall(rf"steps\.{ours['id']}\.outputs\.([\w-]+)", recipe)
    assert ACTION["outputs"].keys() >= set(outputs) == {"report"}


# The step that scans.


def test_a_model_that_passes(runner: Runner, healthy: Path) -> None:
    ended = runner.scan(
        model=str(healthy), require="float16+sdpa\nfloat32+eager\n", gpu="T4\nA100 80GB\n"
    )
    assert ended.code == 0, ended.output
    assert ended.outputs["exit-code"] == "0"
    assert [each for each in ended.commands if each.name == "error"] == []
    folder = Path(ended.outputs["report"])
    assert {each.name for each in folder.iterdir()} == {
        f"report.{suffix}" for suffix in ("json", "md", "html", "sarif")
    }
    report = read_report(folder / "report.json")
    assert [each.target.name for each in report.recommendations] == ["T4", "A100"]
    markdown = (folder / "report.md").read_text(encoding="utf-8")
    assert ended.summary.endswith(markdown)
    verdict = ended.summary.removesuffix(markdown)
    assert re.fullmatch(r"    \S.*\n\n", verdict)
    assert verdict.strip() in ended.output


def test_a_model_that_fails(runner: Runner) -> None:
    ended = runner.scan(model="demo:qwen2-eager", require="float16+eager", report="a b/reports")
    assert ended.code == 1, ended.output
    assert ended.outputs == {"exit-code": "1", "report": "a b/reports"}
    assert (runner.workspace / "a b" / "reports" / "report.sarif").stat().st_size
    errors = {each.properties["title"]: each.data for each in ended.commands}
    assert "modeling_qwen2.py:" in errors["PC301 demo:qwen2-eager"]
    assert "float16 + eager" in errors["precheck"]
    assert errors["precheck"] in ended.summary
    assert "## Culprit of float16 + eager" in ended.summary


def test_a_baseline_lets_it_pass(runner: Runner) -> None:
    known = '[[accept]]\ncode = "PC301"\nreason = "we use sdpa"\n'
    (runner.workspace / "known.toml").write_text(known, encoding="utf-8")
    ended = runner.scan(
        model="demo:qwen2-eager", require="float16+eager", baseline="known.toml", fail_on="warning"
    )
    assert ended.code == 0, ended.output
    accepted = [each for each in ended.commands if each.properties["title"].startswith("PC301")]
    assert [each.name for each in accepted] == ["notice"]


def test_a_hostile_name_is_a_name(runner: Runner) -> None:
    ended = runner.scan(
        model=HOSTILE, revision=HOSTILE, require=HOSTILE, gpu=HOSTILE, report=HOSTILE
    )
    assert ended.code == 2
    assert ended.outputs["exit-code"] == "2"
    assert ended.outputs["report"] == HOSTILE
    (error,) = ended.commands
    assert (error.name, error.properties) == ("error", {"title": "precheck"})
    assert "unknown dtype" in error.data
    assert list(runner.workspace.rglob("touched")) == []


def test_an_unknown_model_is_told(runner: Runner) -> None:
    ended = runner.scan(model=f"-x{HOSTILE}")
    assert ended.code == 3, ended.output
    (error,) = ended.commands
    assert error.name == "error"
    assert error.data.startswith("error: ")
    assert "\nhint: " in error.data
    assert ended.summary == "".join(f"    {line}\n" for line in error.data.split("\n"))
    assert list(runner.workspace.iterdir()) == []


def test_what_a_model_is_called_is_no_command(runner: Runner, healthy: Path) -> None:
    (runner.workspace / "##[add-mask]secret").symlink_to(healthy)
    ended = runner.scan(model="./##[add-mask]secret", args="--quick --format markdown")
    assert ended.code == 0, ended.output
    assert "##[add-mask]secret" in ended.output
    assert "add-mask" not in {each.name for each in ended.commands}


def test_other_options_are_words_and_nothing_more(runner: Runner) -> None:
    given = runner.temporary / "given"
    runner.executable("precheck", f'printf "%s\\0" "$@" > "{given}"')
    runner.scan(
        model="m", args="--quick\n--prompt \"say $(touch touched) `touch touched` * 'x'\"\n"
    )
    words = given.read_text(encoding="utf-8").split("\0")
    assert words[:5] == [
        "scan",
        *("--fail-on", "error"),
        *("--quick", "--prompt"),
    ]
    assert words[5] == "say $(touch touched) `touch touched` * 'x'"
    assert words[-3:] == ["--", "m", ""]
    assert list(runner.workspace.iterdir()) == []


def test_a_quote_that_is_not_closed_ends_the_step(runner: Runner, healthy: Path) -> None:
    ended = runner.scan(model=str(healthy), args='--prompt "never closed')
    assert ended.code == 1
    assert "No closing quotation" in ended.output
    assert ended.outputs == {}


# The step that compares an engine.


def test_an_engine_that_runs_something_else(runner: Runner, engine: Engine) -> None:
    reports = runner.workspace / "reports"
    scanned = runner.scan(
        model=str(engine.folder), args="--quick --dtype float32 --attn sdpa", report="reports"
    )
    assert scanned.code == 0, scanned.output
    with serving(engine) as url:
        ended = runner.verify(
            model=str(engine.folder),
            server=url,
            server_require="bfloat16+sdpa\n",
            server_args="--dtype float32 --attn sdpa --generate 4 --concurrency 1",
        )
    assert ended.code == 1, ended.output
    assert ended.outputs["exit-code"] == "1"
    (error,) = ended.commands
    assert error.data == "FAIL: the server behaves like float32 + sdpa, not bfloat16 + sdpa"
    assert error.data in ended.summary
    bug = (reports / "server.md").read_text(encoding="utf-8")
    assert ended.summary.endswith(bug)
    assert "float32 + sdpa is safe" in bug
    assert json.loads((reports / "server.json").read_text(encoding="utf-8"))["distances"]


def test_an_engine_is_compared_with_the_report(runner: Runner) -> None:
    given = runner.temporary / "given"
    runner.executable("precheck", f'printf "%s\\0" "$@" > "{given}"; echo PASS: it does')
    ended = runner.verify(
        model="-m",
        revision="abc",
        server=HOSTILE,
        server_require="bfloat16\nfloat16+sdpa\n",
        server_args="--served-model 'a b'",
    )
    words = given.read_text(encoding="utf-8").split("\0")
    assert (ended.code, ended.outputs) == (0, {"exit-code": "0"})
    assert ended.summary == "    PASS: it does\n"
    assert words[:-8] == [
        "verify",
        *("--report", f"{runner.workspace}/reports/report.json", "--revision", "abc"),
        *("--require", "bfloat16", "--require", "float16+sdpa", "--served-model", "a b"),
    ]
    assert words[-4:] == ["--", HOSTILE, "-m", ""]
    assert list(runner.workspace.rglob("touched")) == []


def test_an_engine_is_asked_only_where_there_is_one_and_its_code_counts() -> None:
    (step,) = (step for step in STEPS if step.get("id") == "verify")
    assert step["if"] == "inputs.server"
    assert STEPS.index(step) == len(STEPS) - 1
    code = ACTION["outputs"]["exit-code"]["value"]
    assert code == "${{ steps.verify.outputs.exit-code || steps.scan.outputs.exit-code }}"


# The other steps.


def key(runner: Runner, model: str, revision: str = "") -> str:
    return runner("hub", {"model": model, "revision": revision}).outputs["key"]


def test_the_hub_is_cached_by_model_and_revision(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", "/hub home")
    ended = runner("hub", {"model": HOSTILE})
    assert (ended.code, ended.outputs["folder"]) == (0, "/hub home/hub")
    assert re.fullmatch(r"precheck-hub-[0-9a-f]{64}", ended.outputs["key"])
    keys = {key(runner, "a/b"), key(runner, "a/b", "main"), key(runner, "a/c"), key(runner, "A/b")}
    assert len(keys) == 4
    assert key(runner, "a/b") in keys
    assert list(runner.workspace.iterdir()) == []


def test_what_is_not_downloaded_is_not_cached(runner: Runner) -> None:
    (runner.workspace / "model").mkdir()
    for model in ("demo:qwen2-eager", "model", "./model"):
        assert runner("hub", {"model": model}).outputs == {}
    (cached,) = (step for step in STEPS if step.get("if") == "steps.hub.outputs.key")
    assert cached["with"] == {
        "path": "${{ steps.hub.outputs.folder }}",
        "key": "${{ steps.hub.outputs.key }}",
    }


def test_it_installs_itself_into_an_environment_of_its_own(runner: Runner) -> None:
    log = runner.temporary / "log"
    noting = f'printf "%s|" "$@" >> "{log}"; echo >> "{log}"'
    creates = f'mkdir -p "$3/bin"; cp "{runner.bin}/noting" "$3/bin/python"'
    runner.executable("noting", noting)
    python = runner.executable("plain", f'{noting}\n[[ "$2" != venv ]] || {{ {creates}; }}')
    ended = runner(
        "install",
        {"torch-index": "https://index.example"},
        **{
            "github.action_path": "/an action",
            "steps.python.outputs.python-path": str(python),
        },
    )
    assert ended.code == 0, ended.output
    venv = runner.temporary / "precheck-venv"
    assert ended.outputs == {"bin": str(venv / "bin")}
    created, installed = log.read_text(encoding="utf-8").splitlines()
    assert created == f"-m|venv|{venv}|"
    assert installed.startswith("-m|pip|install|")
    assert installed.endswith(
        "|-c|/an action/constraints.txt|--extra-index-url|https://index.example|/an action|"
    )
    assert (ROOT / "constraints.txt").exists()
