"""The documentation says what the program does."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from typer.testing import CliRunner

from precheck import cli
from precheck.checkpoint.gallery import GALLERY
from precheck.errors import ExitCode
from precheck.facts import float16_paths, symptoms
from precheck.facts.deployed_formats import spelling
from precheck.facts.engines import EngineName
from precheck.facts.formats import CACHE_FORMATS, WEIGHT_FORMATS
from precheck.judge.findings.rules import RULES
from precheck.records import (
    advice,
    answers,
    finding,
    format_loss,
    report,
    sizes,
    stored,
    traces,
)
from precheck.records.outcomes import coverage, every_prompt, layer_bounds, positions
from precheck.served.findings.rules import SERVED_RULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.facts.float16_paths import Float16Path
    from precheck.facts.formats import CacheFormat, WeightFormat
    from precheck.facts.symptoms import Symptom

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]

NOT_IN_THE_REPORT = {"Measurements", "RunTrace"}
RECORDS = {
    name: record
    for module in (
        *(report, advice, answers, sizes, stored, traces, finding, format_loss),
        *(coverage, every_prompt, layer_bounds, positions),
    )
    for name, record in vars(module).items()
    if is_dataclass(record) and record.__module__ == module.__name__
}


@functools.cache
def help_of(*command: str) -> str:
    shown = CliRunner().invoke(
        cli.app,
        [*command, "--help"],
        prog_name="precheck",
        env={"COLUMNS": "80", "NO_COLOR": "1"},
        catch_exceptions=False,
    )
    assert shown.exit_code == 0
    return "\n".join(line.rstrip() for line in shown.stdout.strip("\n").splitlines())


def blocks(text: str, *, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def first_column(text: str) -> list[str]:
    cells = (line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| "))
    return [cell.strip("`") for cell in cells]


def section(text: str, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    assert found, f"no section {heading!r}"
    return found[1]


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_map_of_the_package_is_right() -> None:
    """Every file is there and defines what is to be read first; no idea stands twice."""
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (.+?) \| `(\S+\.py)` \| `(\w+)` \|$", section(page, "Where to look"), re.MULTILINE
    )
    assert len(rows) >= 12
    assert len({idea for idea, _, _ in rows}) == len(rows)
    for _, file, name in rows:
        tree = ast.parse((ROOT / "precheck" / file).read_text(encoding="utf-8"))
        defined = {
            target.id
            for node in tree.body
            for target in ast.walk(node)
            if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
        } | {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, f"{file} defines no {name}"


def test_what_an_addition_touches_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/.]+(?:\.\w+|/))`", section(page, "What an addition touches"))
    assert len(named) > 15
    missing = [
        name for name in named if not any((ROOT / at / name).exists() for at in ("", "precheck"))
    ]
    assert missing == []


COMMANDS = ("scan", "report", "diff", "fix", "hunt", "verify", "explain", "demo", "gpus", "env")


@pytest.mark.pinned("its line breaks are those of the tested typer")
def test_a_page_shows_the_help_of_every_command() -> None:
    page = ROOT / "docs" / "commands.md"
    helps = "".join(f"\n## precheck {name}\n\n```text\n{help_of(name)}\n```\n" for name in COMMANDS)
    text = (
        "# Commands\n\nWhat `precheck COMMAND --help` prints. `precheck --install-completion` lets"
        " the shell complete\nflags, dtypes, attention implementations, GPUs, finding codes and"
        f" built-in models.\n{helps}"
    )
    if os.environ.get("PRECHECK_UPDATE_GOLDEN") == "1":
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text


def test_a_page_shows_every_format() -> None:
    tables = "\n\n".join((formats_table("kv:", CACHE_FORMATS), formats_table("q:", WEIGHT_FORMATS)))
    assert_shows(ROOT / "docs" / "formats.md", tables)


def test_a_page_shows_every_float16_path() -> None:
    assert_shows(ROOT / "docs" / "float16-paths.md", paths_tables())


def test_a_page_shows_every_symptom() -> None:
    rows = (
        f"| {row.name} | {row.why} | {run_first(row)}. {row.then} |"
        for row in symptoms.table().symptom
    )
    rows = (row.replace("<", "&lt;") for row in rows)  # <pad> is no tag
    head = "| you see | because | run first |\n|---|---|---|"
    assert_shows(ROOT / "docs" / "decide.md", f"{head}\n" + "\n".join(rows))


def run_first(row: Symptom) -> str:
    return "; ".join(f"`{command}`" for command in row.first)


def assert_shows(page: Path, tables: str) -> None:
    """Between its two comments a page has these tables."""
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- tables")
    comment, _, rest = rest.partition("-->\n")
    _, end, after = rest.partition("<!-- end of tables -->")
    text = f"{before}<!-- tables{comment}-->\n{tables}\n{end}{after}"
    if os.environ.get("PRECHECK_UPDATE_GOLDEN") == "1":
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text


def paths_tables() -> str:
    """Those that hold, and those that the newest version no longer has."""
    lines: list[str] = []
    for title, is_fixed in (("What holds", False), ("What older versions did", True)):
        lines += [
            f"## {title}",
            "",
            "| engine, where | what decides | function | versions | result | what to do |",
            "|---|---|---|---|---|---|",
            *(path_row(path) for path in float16_paths.table().path if path.is_fixed is is_fixed),
            "",
        ]
    return "\n".join(lines)


def path_row(path: Float16Path) -> str:
    threads = ", ".join(f"[{thread(link)}]({link})" for link in path.links)
    factor = "" if path.factor == 1 else f"{path.factor:g} x "
    decides = f"{factor}`{path.operand}` > {path.limit:,.0f}"
    return (
        f"| {path.engine}: {path.where} | {decides} | {path.function} | {path.versions}; {threads} "
        f"| {path.effect} | {path.cure} |"
    )


def thread(link: str) -> str:
    """``llama.cpp#26044``."""
    *_, repository, _, number = link.split("/")
    return f"{repository}#{number}"


def test_the_table_of_formats_is_what_a_scan_prints() -> None:
    page = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
    (shown,) = blocks(section(page, "How to read the result"), language="text")
    printed = (ROOT / "tests" / "golden" / "brief-formats-80.txt").read_text(encoding="utf-8")
    lines = [line for line in shown.splitlines() if line != "[...]"]
    assert len(lines) > 8
    assert [line for line in lines if line not in printed.splitlines()] == []


def formats_table(kind: str, rows: Mapping[str, CacheFormat] | Mapping[str, WeightFormat]) -> str:
    lines = ["| format | also called | bits | what it is | engines |", "|---|---|---:|---|---|"]
    for name, row in rows.items():
        aliases = ", ".join(f"`{alias}`" for alias in row.aliases)
        engines = ", ".join(engine_words(f"{kind}{name}"))
        lines.append(
            f"| `{kind}{name}` | {aliases} | {row.bits:g} | {row.description} | {engines} |"
        )
    return "\n".join(lines)


def engine_words(name: str) -> Iterator[str]:
    for engine in EngineName:
        spelled = spelling(name, engine=engine)
        if spelled.exists:
            flag = "" if spelled.flag is None else f" `{spelled.flag}`"
            yield f"{engine.label}{flag}{f' ({spelled.note})' if spelled.note else ''}"


def test_the_readme_is_short() -> None:
    """Whatever else there is to say is documentation."""
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", ["README.md", "README.zh.md", "docs/exit-codes.md"])
def test_exit_codes_are_those_of_the_program(page: str) -> None:
    rows = first_column((ROOT / page).read_text(encoding="utf-8"))
    assert [int(cell) for cell in rows if cell.isdigit()] == [code.value for code in ExitCode]


def test_every_finding_has_a_section() -> None:
    page = (ROOT / "docs" / "findings.md").read_text(encoding="utf-8")
    documented = re.findall(r"^#+ (PC\d{3})\b", page, flags=re.MULTILINE)
    assert sorted(documented) == sorted(
        [rule.code for rule in RULES] + [rule.code for rule in SERVED_RULES]
    )


@pytest.mark.parametrize("name", sorted(RECORDS.keys() - NOT_IN_THE_REPORT - {"Limits"}))
def test_every_field_of_the_report_is_documented(name: str) -> None:
    page = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    documented = first_column(section(page, name))
    assert documented[0] == "field"
    assert set(documented[1:]) == {field.name for field in fields(RECORDS[name])}


def test_only_real_records_are_documented() -> None:
    page = (ROOT / "docs" / "report-schema.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", page, flags=re.MULTILINE)
    assert set(headings) == RECORDS.keys() - NOT_IN_THE_REPORT


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"dead link {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"dead anchor {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page.read_text(encoding="utf-8"), language="console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:2] == ["accelerate", "launch"]:
                words = [words.pop(words.index("-m") + 1), *words[words.index("-m") + 1 :]]
            match words:
                case ["precheck", command, *rest]:
                    known = help_of(command)
                    flags = [each.split("=")[0] for each in rest if each.startswith("-")]
                    assert [flag for flag in flags if flag not in known] == []
                case ["pip", "install", "."]:
                    pass
                case ["make", *targets]:
                    targets = [target for target in targets if "=" not in target]
                    assert [target for target in targets if f"\n{target}:" not in makefile] == []
                case _:
                    assert words == [], f"unknown command {line}"


def commands(page: Path) -> list[list[str]]:
    """Everything that a page tells its reader to type into precheck."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line.strip().removeprefix("- run: ")
        for language in ("console", "yaml")
        for block in blocks(text, language=language)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    return [word for word in words if word[:1] == ["precheck"]]


def test_the_recipe_for_github_actions_is_yaml_with_steps() -> None:
    recipe, _ = blocks((ROOT / "docs" / "ci.md").read_text(encoding="utf-8"), language="yaml")
    steps = yaml.safe_load(recipe)["jobs"]["precheck"]["steps"]
    assert all({"run", "uses"} & step.keys() for step in steps)
    assert yaml.safe_load(recipe)["permissions"]["security-events"] == "write"


@pytest.mark.parametrize("page", ["README.zh.md", "docs/index.md"])
def test_pages_show_the_picture_of_the_readme(page: str) -> None:
    shown = [
        text.partition("<!-- picture")[2].partition("-->\n\n")[0]
        for text in (README, (ROOT / page).read_text(encoding="utf-8"))
    ]
    assert shown[0] == shown[1]
    assert "only with eager attention: float16 overflows in layer 3" in shown[0]


def test_every_command_is_documented() -> None:
    typed_somewhere = {words[1] for page in PAGES for words in commands(page)}
    assert {
        command.callback.__name__ for command in cli.app.registered_commands if command.callback
    } == (typed_somewhere)


def test_python_blocks_compile() -> None:
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), language="python"):
            compile(block, page.name, "exec")


def test_every_make_target_has_help() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    assert targets
    for target in targets[1].split():
        assert re.search(rf"^{target}:.*## \w", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("name", GALLERY)
def test_every_built_in_model_has_its_story(name: str) -> None:
    """With the thread it was reported in, the scan's output, a cure and what does not help."""
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    _, _, rest = page.partition(f"\n## {name}: ")
    story = rest.partition("\n## ")[0]
    assert "https://github.com/" in story.partition("```")[0]
    assert f"  demo:{name} · " in story
    assert "**Cure.**" in story
    assert "**What does not help.**" in story
    assert GALLERY[name].thread.rpartition("/")[2] in story
