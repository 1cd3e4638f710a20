"""What to run first for what people see, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.facts.findings import explanations
from precheck.facts.symptoms import table as known
from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.wrapping import wrapped

if TYPE_CHECKING:
    from precheck.facts.symptoms import Symptom

_WIDEST_PROSE = 100


def render_symptom(symptom: Symptom, *, width: int, colour: bool) -> str:
    """Why it happens, commands that are never broken, how to read the answer, and findings."""
    width = min(width, _WIDEST_PROSE)
    titles = {code: explanations()[code].title for code in symptom.codes}
    columns = (
        Column(header="code", cells=[Text(code) for code in titles], justify="left"),
        Column(header="meaning", cells=[Text(title) for title in titles.values()], justify="left"),
    )
    return printed(
        Text(symptom.name, style="bold"),
        Text(),
        wrapped(Text(symptom.why)),
        Text(),
        Text("Run first:"),
        *(Text(f"  {command}", style="cyan", no_wrap=True) for command in symptom.first),
        Text(),
        wrapped(Text(symptom.then)),
        Text(),
        Text("It may be:"),
        table(columns, width=width),
        Text(),
        *(wrapped(Text(link, style="dim")) for link in symptom.links),
        width=width,
        colour=colour,
    )


def render_symptoms(*, width: int, colour: bool) -> str:
    """A line for each."""
    rows = known().symptom
    names = Column(header="what you see", cells=[Text(row.name) for row in rows], justify="left")
    hint = Text('what to run first: precheck explain "!!!!"', style="dim")
    return printed(Text(), table((names,), width=width), Text(), hint, width=width, colour=colour)
