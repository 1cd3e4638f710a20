"""Every format a report is written in: golden files, and text from outside that stays text."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from precheck.judge import judge
from precheck.judge.baseline import accept, read_baseline
from precheck.records.finding import Verdict
from precheck.records.traces import LayerTrace, Section
from precheck.render import RENDERERS, SUFFIXES, Format
from precheck.render.formats.markdown_report import LIMIT
from tests import hand_made
from tests.judge import stories
from tests.render.evil import EVIL, evil_report
from tests.render.test_console import assert_golden

if TYPE_CHECKING:
    from precheck.records.report import Report

DATA = Path(__file__).parents[1] / "data"
SARIF_SCHEMA = json.loads((DATA / "sarif-2.1.0.json").read_text(encoding="utf-8"))
REPORTS = {
    "qwen2-eager": judge(hand_made.qwen2_eager(), version="0.1.0"),
    "all-safe": judge(hand_made.measurements(), version="0.1.0"),
    "broken-checkpoint": judge(hand_made.broken_checkpoint(), version="0.1.0"),
    "formats": judge(hand_made.formats(), version="0.1.0"),
    "static-on-t4": judge(stories.static(), gpus=("T4",), version="0.1.0"),
    "qwen2-on-four": judge(
        stories.qwen2(), gpus=("T4", "V100", "A100 80GB", "Apple M2 Max"), version="0.1.0"
    ),
}
LOOKS = re.compile(r"<(svg|style)\b.*?</\1>", re.DOTALL)


@pytest.mark.parametrize("story", list(REPORTS))
@pytest.mark.parametrize(
    ("written_as", "suffix"),
    [
        (Format.MARKDOWN, "md"),
        (Format.SARIF, "sarif"),
        (Format.CARD, "card.md"),
        (Format.GITHUB, "github.txt"),
    ],
)
def test_the_file_is_as_it_was_last_approved(story: str, written_as: Format, suffix: str) -> None:
    assert_golden(RENDERERS[written_as].render(REPORTS[story]), f"{story}.{suffix}")


@pytest.mark.parametrize("story", list(REPORTS))
def test_the_page_is_as_it_was_last_approved(story: str) -> None:
    """Without what a browser looks at: styles, and charts, whose fonts differ between machines."""
    page = RENDERERS[Format.HTML].render(REPORTS[story])
    assert_golden(LOOKS.sub("", page), f"{story}.html")


def test_the_baseline_is_as_it_was_last_approved() -> None:
    assert_golden(RENDERERS[Format.BASELINE].render(REPORTS["qwen2-eager"]), "qwen2-eager.toml")


def test_each_suffix_chooses_one_format() -> None:
    assert set(SUFFIXES.values()) == set(Format) - {Format.CARD, Format.GITHUB}


@pytest.mark.parametrize("written_as", list(Format))
@pytest.mark.parametrize("story", [*REPORTS, "evil"])
def test_every_file_can_be_written_and_acts_on_no_terminal(story: str, written_as: Format) -> None:
    report = evil_report() if story == "evil" else REPORTS[story]
    text = RENDERERS[written_as].render(report)
    text.encode()
    if written_as is not Format.JSON:  # it holds the text as it is, escaped by JSON
        assert {each for each in text if not each.isprintable()} <= {"\n"}


# HTML.


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.outside_code: list[str] = []
        self._code = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._code += tag in {"code", "pre"}
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in {"code", "pre"}

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if not self._code:
            self.outside_code.append(data)


@pytest.mark.parametrize("story", [*REPORTS, "evil"])
def test_the_page_has_no_script_and_loads_nothing(story: str) -> None:
    report = evil_report() if story == "evil" else REPORTS[story]
    page = _Page(RENDERERS[Format.HTML].render(report))
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    loaded = [value for name, value in page.attributes if name in {"src", "srcset", "xlink:href"}]
    assert loaded == []
    links = {value for name, value in page.attributes if name == "href" and value}
    assert all(
        link.startswith(("https://github.com/", "#", "data:,", "https://")) for link in links
    )


def test_evil_text_is_shown_in_the_page_as_text() -> None:
    page = _Page(RENDERERS[Format.HTML].render(evil_report()))
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert "{{ 7 * 7 }}" in "".join(page.text)


def test_every_table_of_the_page_tells_what_it_is() -> None:
    page = RENDERERS[Format.HTML].render(REPORTS["qwen2-eager"])
    assert page.count("<table>") == page.count("<caption>") > 3
    assert page.count("<svg ") == page.count('role="img"') == page.count("<figcaption>") == 3
    assert '<html lang="en">' in page


# Markdown.


def test_evil_text_is_shown_in_markdown_as_text() -> None:
    text = RENDERERS[Format.MARKDOWN].render(evil_report())
    as_html = MarkdownIt("gfm-like", {"linkify": False}).render(text)
    page = _Page(as_html)
    assert not {"script", "img", "a"} & set(page.tags)
    assert "<script>alert(1)</script>" in "".join(page.text)
    assert [each for each in page.outside_code if re.search(r"@\w", each)] == []
    assert any(each.endswith("@") for each in page.outside_code), "a comment parts the name"


def _tall(num_layers: int) -> Report:
    scan = hand_made.qwen2_eager()
    layers = tuple(
        LayerTrace(
            index=index,
            section=Section.DECODER,
            module=f"model.layers.{index}",
            abs_max=1234.5 + index,
            num_nan=0,
            num_inf=0,
            relative_error=0.001,
        )
        for index in range(num_layers)
    )
    runs = tuple(replace(run, layers=layers) for run in scan.runs)
    return judge(replace(scan, runs=runs), version="0.1.0")


def test_a_model_of_a_hundred_layers_fits_into_an_issue_with_every_layer() -> None:
    text = RENDERERS[Format.MARKDOWN].render(_tall(100))
    assert len(text) <= LIMIT
    assert "| decoder 99 |" in text
    assert "Largest value after each layer" in text


@pytest.mark.parametrize("num_layers", [1000, 5_000])
def test_a_taller_one_tells_which_layers_it_shows(num_layers: int) -> None:
    text = RENDERERS[Format.MARKDOWN].render(_tall(num_layers))
    assert len(text.encode()) <= LIMIT
    assert "Largest value after each layer" not in text
    assert text.endswith("Written by precheck 0.1.0.\n")
    assert (num_layers > 1000) or re.search(r"after every \d+th layer", text)


def test_no_report_is_longer_than_an_issue() -> None:
    report = REPORTS["qwen2-eager"]
    endless = replace(
        report,
        findings=tuple(replace(finding, message="上海" * 5_000) for finding in report.findings)
        * 40,
        runs=report.runs * 200,
    )
    text = RENDERERS[Format.MARKDOWN].render(endless)
    assert len(text.encode()) <= LIMIT
    assert text.endswith("[truncated: the rest is in the JSON report]\n")


def test_the_line_of_code_is_linked_at_the_release_that_was_measured() -> None:
    scan = hand_made.qwen2_eager()
    row = hand_made.scores_overflow(source_file="transformers/models/qwen2/modeling_qwen2.py")
    runs = (*scan.runs[:3], replace(scan.runs[3], overflows=(row,)), *scan.runs[4:])
    report = judge(replace(scan, runs=runs), version="0.1.0")
    link = (
        "https://github.com/huggingface/transformers/blob/v5.23.0/src/transformers/models/qwen2/"
        "modeling_qwen2.py#L155"
    )
    for written_as in (Format.MARKDOWN, Format.HTML, Format.SARIF):
        assert link in RENDERERS[written_as].render(report)
    of_main = {**scan.environment.libraries, "transformers": "5.24.0.dev0"}
    unreleased = replace(report, environment=replace(scan.environment, libraries=of_main))
    assert "blob/" not in RENDERERS[Format.MARKDOWN].render(unreleased)


# SARIF.


@pytest.mark.parametrize("story", [*REPORTS, "evil"])
def test_sarif_is_what_the_standard_says(story: str) -> None:
    report = evil_report() if story == "evil" else REPORTS[story]
    log = json.loads(RENDERERS[Format.SARIF].render(report))
    jsonschema.validate(log, SARIF_SCHEMA)
    (run,) = log["runs"]
    assert len(run["results"]) == len(report.findings)
    assert all(each["locations"][0]["physicalLocation"] for each in run["results"])


def test_sarif_points_to_the_line_of_modeling_code() -> None:
    log = json.loads(RENDERERS[Format.SARIF].render(REPORTS["qwen2-eager"]))
    first = log["runs"][0]["results"][0]
    assert first["ruleId"] == "PC301"
    assert first["level"] == "error"
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "modeling_qwen2.py"
    assert place["region"]["startLine"] == 155


def test_sarif_knows_a_finding_again_whatever_its_figures() -> None:
    def fingerprints(report: Report) -> list[str]:
        log = json.loads(RENDERERS[Format.SARIF].render(report))
        return [each["partialFingerprints"]["precheck/v1"] for each in log["runs"][0]["results"]]

    report = REPORTS["qwen2-eager"]
    louder = tuple(
        replace(finding, message=finding.message.replace("3", "4")) for finding in report.findings
    )
    assert fingerprints(report) == fingerprints(replace(report, findings=louder))
    assert len(set(fingerprints(report))) == len(report.findings)


def test_what_a_baseline_accepts_is_suppressed_in_sarif_with_its_reason() -> None:
    baseline = read_baseline('[[accept]]\ncode = "PC301"\nreason = "we use sdpa"\n')
    report = accept(REPORTS["qwen2-eager"], baseline)
    results = json.loads(RENDERERS[Format.SARIF].render(report))["runs"][0]["results"]
    suppressed = {result["ruleId"]: result.get("suppressions") for result in results}
    assert suppressed["PC301"][0]["justification"] == "we use sdpa"
    assert suppressed["PC201"] is None


# The model card.


@pytest.mark.parametrize("story", [*REPORTS, "evil"])
def test_the_card_is_read_by_the_hub_library(story: str) -> None:
    report = evil_report() if story == "evil" else REPORTS[story]
    card = ModelCard(RENDERERS[Format.CARD].render(report))
    assert card.data.get("tags") == ["precheck"]
    assert "## Numerical range and precision" in card.text
    page = _Page(MarkdownIt("gfm-like", {"linkify": False}).render(card.text))
    assert not {"script", "a"} & set(page.tags)
    loaded = [value or "" for name, value in page.attributes if name == "src"]
    assert len(loaded) <= 1
    assert all(re.fullmatch(BADGE, each) for each in loaded)


BADGE = r"https://img\.shields\.io/badge/precheck-([\w.%~]|--)+-(brightgreen|yellow|red)"


def badge(report: Report) -> str | None:
    text = RENDERERS[Format.CARD].render(report)
    found = re.search(rf"!\[precheck: [^\n]+\]\({BADGE}\)", text)
    return found[0] if found else None


def deployed_is(verdict: Verdict, *, attn_implementation: str = "sdpa") -> Report:
    report = REPORTS["all-safe"]
    runs = tuple(
        replace(
            run,
            verdict=verdict,
            attn_implementation=attn_implementation,
            requested_attn_implementation=attn_implementation,
        )
        if report.model.deployed == run.configuration
        else run
        for run in report.runs
    )
    model = replace(report.model, default_attn_implementation=attn_implementation)
    return replace(report, runs=runs, model=model)


@pytest.mark.parametrize(
    ("verdict", "end"),
    [
        (Verdict.SAFE, "safe-brightgreen)"),
        (Verdict.LOW_HEADROOM, "low%20headroom-yellow)"),
        (Verdict.OVERFLOW, "overflow-red)"),
    ],
)
def test_the_badge_is_the_verdict_of_a_plain_load(verdict: Verdict, end: str) -> None:
    shown = badge(deployed_is(verdict))
    assert shown is not None
    assert shown.endswith(f"/badge/precheck-bfloat16%20%2B%20sdpa%20{end}")


@pytest.mark.parametrize("name", ["a-b_c", "x](http://evil.example)", "a/b?c#d", "上海", "%2B"])
def test_any_attention_is_text_in_the_badge(name: str) -> None:
    shown = badge(deployed_is(Verdict.SAFE, attn_implementation=name))
    assert shown is not None
    part = shown.partition("/badge/precheck-")[2].removesuffix("-brightgreen)")
    assert unquote(part.replace("--", "-").replace("__", "_")) == f"bfloat16 + {name} safe"


def test_no_badge_for_what_was_not_measured_or_is_broken() -> None:
    safe = deployed_is(Verdict.SAFE)
    assert badge(safe)
    assert badge(replace(safe, complete=False)) is None
    assert badge(replace(safe, runs=())) is None
    assert badge(REPORTS["broken-checkpoint"]) is None
    assert badge(REPORTS["static-on-t4"]) is None


def test_the_card_tells_the_maximum_of_each_configuration_and_where() -> None:
    text = RENDERERS[Format.CARD].render(REPORTS["qwen2-eager"])
    metadata = yaml.safe_load(text.split("---\n")[1])
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    assert {metric["name"]: metric["value"] for metric in metrics}[
        "Maximum activation, float32 + sdpa"
    ] == max(hand_made.RESIDUAL)
    assert "| float32 + sdpa | ✓ safe | 17.6 | model.layers.5 |" in text
    assert "Not safe: `float16 + eager`, `bfloat16 + eager`." in text


# The baseline.


@pytest.mark.parametrize("story", [*REPORTS, "evil"])
def test_a_baseline_with_reasons_accepts_what_it_was_written_from(story: str) -> None:
    report = evil_report() if story == "evil" else REPORTS[story]
    text = RENDERERS[Format.BASELINE].render(report)
    tomllib.loads(text)
    filled = text.replace('reason = ""', 'reason = "known"')
    accepted = accept(report, read_baseline(filled))
    if story != "evil":  # there what is written out is no longer the name itself
        assert all(finding.accepted for finding in accepted.findings if finding.severity != "note")


def test_evil_is_evil() -> None:
    assert "\x1b" in EVIL
    assert "<script>" in EVIL
