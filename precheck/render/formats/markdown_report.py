"""The report as a bug report: what breaks, where, how to see it, and where it was seen."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import indent
from typing import TYPE_CHECKING, NamedTuple

from precheck.render.parts import markdown
from precheck.render.parts.culprit import columns_around, culprit_facts, focus
from precheck.render.parts.environment import environment_facts
from precheck.render.parts.generation_table import generation_columns
from precheck.render.parts.headline import headline, identity, scope
from precheck.render.parts.intervals import interval_tables
from precheck.render.parts.layer_table import layer_columns
from precheck.render.parts.position_table import position_columns, positions_title
from precheck.render.parts.reproduction import (
    own_prompts,
    plain_reproduction,
    reproduction,
)
from precheck.render.parts.run_table import run_columns
from precheck.render.parts.small_tensors.table import small_tensor_tables
from precheck.render.parts.source_link import source_link
from precheck.render.parts.stored_formats.table import format_columns, sizes_note
from precheck.render.parts.words import SEVERITY_MARKS, VERDICT_MARKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.finding import Finding
    from precheck.records.report import Report

LIMIT = 65_536
"""Characters that an issue or a comment on GitHub may have.

**Source**: "body is too long (maximum is 65536 characters)", the answer of GitHub's API. Bytes of
UTF-8 are counted here, which is never fewer.
"""

_LONGEST_TEXT = 200
_CUT = "\n\n[truncated: the rest is in the JSON report]\n"


class _Detail(NamedTuple):
    """How much of the long parts is included."""

    layer_step: int
    """Every so-many-th layer is in the table; 0 leaves it out."""
    num_findings: int


_DETAILS = (*(_Detail(step, 100) for step in (1, 2, 4, 8, 16)), _Detail(0, 30), _Detail(0, 10))
"""From everything to the least; the first that fits the limit is used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarkdownReport:
    """Markdown to paste into an issue on GitHub, never longer than one may be."""

    extension: str = ".md"

    def render(self, report: Report) -> str:
        """The report, with as much detail as there is room for."""
        for detail in _DETAILS:
            text = "\n\n".join(_sections(report, detail)) + "\n"
            if len(text.encode("utf-8", "replace")) <= LIMIT:
                return text
        kept = text.encode("utf-8", "replace")[: LIMIT - len(_CUT)]
        return kept.decode("utf-8", "ignore") + _CUT


def _sections(report: Report, detail: _Detail) -> Iterator[str]:
    line = headline(report)
    yield f"# {VERDICT_MARKS[line.verdict].symbol} {markdown.prose(line.words, longest=250)}"
    yield f"{markdown.prose(identity(report))}<br>\n{markdown.prose(scope(report))}"
    if report.runs:
        yield f"## Runs\n\n{markdown.table(run_columns(report))}"
    for title, columns in format_columns(report):
        note = markdown.prose(sizes_note(report))
        yield f"## {markdown.prose(title)}\n\n{markdown.table(columns)}\n\n{note}"
    for title, bounds in (*interval_tables(report), *small_tensor_tables(report)):
        yield f"## {markdown.prose(title)}\n\n{markdown.table(bounds)}"
    if by_position := position_columns(report):
        yield f"## {markdown.prose(positions_title(report))}\n\n{markdown.table(by_position)}"
    yield from _culprit(report)
    yield from _written(report)
    yield from _findings(report, most=detail.num_findings)
    yield from _recommendation(report)
    yield from _reproduction(report)
    yield f"## Environment\n\n{_environment(report)}"
    yield from _layers(report, step=detail.layer_step)
    yield f"Written by precheck {markdown.prose(report.precheck_version)}."


def _culprit(report: Report) -> Iterator[str]:
    at = focus(report)
    if at is None:
        return
    overflow = at.run.first_overflow
    if overflow is not None:
        facts = [
            f"- {label or 'and'}: {markdown.code(value.plain)}"
            for label, value in culprit_facts(report, at.run, overflow)
            if label != "code"
        ]
        link = source_link(report, source=overflow.source, source_file=overflow.source_file)
        if link is not None:
            facts.append(f"- source: {link}")
        title = f"## Culprit of {markdown.prose(at.run.name)}"
        yield "\n\n".join(
            (title, "\n".join(facts), markdown.block(overflow.code, language="python"))
        )
    around = columns_around(report)
    if around:
        name = markdown.prose(at.run.attn_implementation)
        yield f"### Layers around it, {name}\n\n{markdown.table(around)}"


def _written(report: Report) -> Iterator[str]:
    for title, columns in generation_columns(report, longest=_LONGEST_TEXT):
        yield markdown.details(title, markdown.table(columns))


def _findings(report: Report, *, most: int) -> Iterator[str]:
    if report.findings:
        lines = [_finding(finding) for finding in report.findings[:most]]
        if len(report.findings) > most:
            lines.append(f"- and {len(report.findings) - most} more, in the JSON report")
        yield "## Findings\n\n" + "\n".join(lines)


def _finding(finding: Finding) -> str:
    mark = SEVERITY_MARKS[finding.severity]
    head = f"- {mark.symbol} **{markdown.prose(finding.code)}** {finding.severity}"
    parts = [f"{head}, {finding.confidence}: {markdown.prose(finding.message)}"]
    parts.append(f"  <br>→ {markdown.prose(finding.advice)}")
    if finding.snippet:
        parts.append(f"\n{indent(markdown.block(finding.snippet, language='python'), '  ')}\n")
    if finding.in_vain:
        parts.append(f"  <br>*What does not help:* {markdown.prose(finding.in_vain)}")
    if finding.accepted is not None:
        parts.append(f"  <br>*Accepted:* {markdown.prose(finding.accepted)}")
    return "\n".join(parts)


def _recommendation(report: Report) -> Iterator[str]:
    advised = report.recommendation
    if advised is None:
        return
    device = markdown.prose(advised.target.name)
    because = markdown.prose("; ".join(advised.reasons))
    if advised.dtype is None:
        yield f"## Nothing can be recommended on {device}\n\n{because}"
        return
    chosen = markdown.prose(f"{advised.dtype} + {advised.attn_implementation}")
    snippet = advised.snippets.get("transformers")
    pasted = f"{markdown.block(snippet, language='python')}\n\n" if snippet else ""
    yield f"## Use {chosen} on {device}\n\n{pasted}{because}"


def _reproduction(report: Report) -> Iterator[str]:
    parts = ["## How to reproduce", markdown.block(reproduction(report), language="sh")]
    own = own_prompts(report)
    if own:
        noun = "prompt" if own == 1 else "prompts"
        parts.append(f"With {own} {noun} of the reporter's own, which are not in this report.")
    plain = plain_reproduction(report)
    if plain is not None:
        parts.append("Without precheck:")
        parts.append(markdown.block(plain, language="python"))
    yield "\n\n".join(parts)


def _environment(report: Report) -> str:
    used = dict.fromkeys(
        f"{run.requested_attn_implementation} requested, {run.attn_implementation} used"
        if run.requested_attn_implementation != run.attn_implementation
        else run.attn_implementation
        for run in report.runs
        if run.failure is None
    )
    arithmetic = dict.fromkeys(f"{run.dtype}: {run.arithmetic}" for run in report.runs)
    facts = [
        ("precheck", report.precheck_version),
        *environment_facts(report.environment),
        ("attention", ", ".join(used)),
        ("arithmetic", ", ".join(arithmetic)),
        ("model", report.model.id),
        ("revision", report.model.revision or ""),
        ("digest of the weights", report.checkpoint.digest or ""),
        ("seed", str(report.seed)),
    ]
    return "\n".join(
        f"- {markdown.prose(label)}: {markdown.code(value)}" for label, value in facts if value
    )


def _layers(report: Report, *, step: int) -> Iterator[str]:
    columns = layer_columns(report)
    if columns and step:
        which = "each layer" if step == 1 else f"every {step}th layer"
        yield markdown.details(f"Largest value after {which}", markdown.table(columns, step=step))
