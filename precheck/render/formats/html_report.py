"""The report as one HTML file: no script, no network; for screens, phones and paper."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from rich.text import Text

from precheck.facts.findings import explanations
from precheck.records.finding import Verdict
from precheck.render.parts.charts import charts
from precheck.render.parts.columns import Column, filled
from precheck.render.parts.culprit import columns_around, culprit_facts, focus
from precheck.render.parts.deployment import comparison_columns
from precheck.render.parts.environment import environment_facts
from precheck.render.parts.generation_table import generation_columns
from precheck.render.parts.headline import headline, identity, scope
from precheck.render.parts.layer_table import layer_columns
from precheck.render.parts.reproduction import own_prompts, reproduction
from precheck.render.parts.run_table import run_columns
from precheck.render.parts.source_link import source_link
from precheck.render.parts.stored_formats.table import format_columns, sizes_note
from precheck.render.parts.words import DASH, SEVERITY_MARKS, VERDICT_MARKS, shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token
    from markdown_it.utils import EnvType, OptionsDict
    from markupsafe import Markup

    from precheck.records.report import Report, Run

_LONGEST_TEXT = 400


class _Table(NamedTuple):
    caption: str
    headers: list[str]
    rows: list[list[Text]]
    numbers: list[bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class HtmlReport:
    """A self-contained page."""

    extension: str = ".html"

    def render(self, report: Report) -> str:
        """The whole page; all text from outside is escaped, and no script may run in it."""
        line = headline(report)
        at = focus(report)
        overflow = at.run.first_overflow if at else None
        return _template().render(
            line=line,
            mark=VERDICT_MARKS[line.verdict],
            identity=identity(report),
            scope=scope(report),
            report=report,
            recommendations=report.recommendations,
            runs=_table("What was measured", run_columns(report)),
            formats=[
                _table(f"{title}; {sizes_note(report)}", columns)
                for title, columns in format_columns(report)
            ],
            devices=_table("Devices", comparison_columns(report)),
            culprit=culprit_facts(report, at.run, overflow) if at and overflow else [],
            culprit_of=at.run.name if at else "",
            culprit_link=source_link(
                report, source=overflow.source, source_file=overflow.source_file
            )
            if overflow
            else None,
            around=_table("Layers around it", columns_around(report)),
            charts=list(charts(report)),
            probes=_table("Result of each probe", _probe_columns(report)),
            findings=report.findings,
            severity_marks=SEVERITY_MARKS,
            explained=_explained(report),
            written=[
                _table(title, columns)
                for title, columns in generation_columns(report, longest=_LONGEST_TEXT)
            ],
            layers=_table("Largest value after each layer", layer_columns(report)),
            environment=environment_facts(report.environment),
            reproduction=reproduction(report).splitlines(),
            own_prompts=own_prompts(report),
        )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415  only this format needs it

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = shown
    text = files("precheck.render.formats").joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(text)


def _table(caption: str, columns: Sequence[Column]) -> _Table | None:
    kept = filled(columns)
    if not kept or not kept[0].cells:
        return None
    return _Table(
        caption=caption,
        headers=[column.header.replace("\n", " ").strip() for column in kept],
        rows=[list(row) for row in zip(*(column.cells for column in kept), strict=True)],
        numbers=[column.justify == "right" for column in kept],
    )


def _probe_columns(report: Report) -> list[Column]:
    """A row for each probe, and what every run that breaks does with it."""
    broken = [run for run in report.runs if run.overflows]

    def column(header: str, cells: list[Text], *, is_number: bool = False) -> Column:
        return Column(header=header, cells=cells, justify="right" if is_number else "left")

    return [
        column("probe", [Text(shown(probe.name)) for probe in report.probes]),
        column("kind", [Text(shown(probe.kind)) for probe in report.probes]),
        column(
            "tokens", [Text(f"{probe.num_tokens:,}") for probe in report.probes], is_number=True
        ),
        *(
            column(shown(run.name), [_probe_cell(run, probe.name) for probe in report.probes])
            for run in broken
        ),
    ]


def _probe_cell(run: Run, probe: str) -> Text:
    """The first overflow in a probe, and the first of its tokens that is hit."""
    broken = next((row for row in run.overflows if probe in row.probes), None)
    if broken is None:
        return Text(DASH)
    mark = VERDICT_MARKS[Verdict.ABSORBED if broken.absorbed else Verdict.OVERFLOW]
    where = str(broken.section) if broken.layer is None else f"layer {broken.layer}"
    position = broken.first_positions.get(probe)
    token = "" if position is None else f", token {position}"
    return Text(f"{mark.symbol} {where}{token}", style=mark.style)


def _explained(report: Report) -> dict[str, Markup]:
    """The documentation of each code, as HTML; it is our own text."""
    from markdown_it import MarkdownIt  # noqa: PLC0415  only this format needs them
    from markupsafe import Markup  # noqa: PLC0415

    documented = explanations()
    markdown = MarkdownIt("commonmark", {"html": False})
    markdown.add_render_rule("link_open", _link_open)
    return {
        code: Markup(markdown.render(documented[code].text))  # noqa: S704  it comes with precheck
        for code in {finding.code for finding in report.findings}
        if code in documented
    }


def _link_open(
    renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType
) -> str:
    """A link into a tab of its own: inside a notebook's frame other sites refuse to be shown."""
    tokens[index].attrs |= {"target": "_blank", "rel": "noreferrer"}
    return renderer.renderToken(tokens, index, options, env)
