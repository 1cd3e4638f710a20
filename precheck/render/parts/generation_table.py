"""What every run generated after a prompt, and where it diverges from float32 or fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.render.parts.columns import Column, table
from precheck.render.parts.words import DASH, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from precheck.records.report import Report, Run
    from precheck.records.traces import Generation

_REST = 58
"""Columns that are not the text's."""
_SHORTEST = 20
_AFTER = 6
"""Characters to show of what follows a divergence."""


def generation_tables(report: Report, *, width: int) -> Iterator[tuple[str, Table]]:
    """A title and a table for each prompt that runs generated text after."""
    longest = max(_SHORTEST, width - _REST)
    for title, columns in generation_columns(report, longest=longest):
        yield title, table(columns, width=width)


def generation_columns(report: Report, *, longest: int) -> Iterator[tuple[str, list[Column]]]:
    """A title and the columns for each prompt, texts cut at ``longest`` characters."""
    prompts = dict.fromkeys(
        generation.probe for run in report.runs for generation in run.generations
    )
    for prompt in prompts:
        rows = [
            (run, generation)
            for run in report.runs
            for generation in run.generations
            if generation.probe == prompt
        ]
        yield f'Generated after prompt "{shown(prompt)}"', _columns(rows, longest=longest)


def _columns(rows: list[tuple[Run, Generation]], *, longest: int) -> list[Column]:
    def words(header: str, cells: list[str], *, rank: int = 0) -> Column:
        return Column(
            header=header, cells=[Text(shown(cell)) for cell in cells], rank=rank, justify="left"
        )

    return [
        words("run", [run.name for run, _ in rows]),
        words("decoding", [written.way for _, written in rows]),
        Column(
            header="diverges at",
            cells=[Text(_token(written.first_difference)) for _, written in rows],
            rank=1,
        ),
        Column(
            header="fails after",
            cells=[
                Text(
                    _tokens(written.broken_step),
                    style="" if written.broken_step is None else "red",
                )
                for _, written in rows
            ],
        ),
        words(
            "text",
            [
                _text(written, reference=_reference(run, written, rows=rows), longest=longest)
                for run, written in rows
            ],
        ),
    ]


def _token(index: int | None) -> str:
    return DASH if index is None else f"token {index}"


def _tokens(step: int | None) -> str:
    if step is None:
        return DASH
    return "the prompt" if step == 0 else f"{step} token{'s' if step > 1 else ''}"


def _reference(
    run: Run, written: Generation, *, rows: list[tuple[Run, Generation]]
) -> Generation | None:
    """What float32 wrote in the same way, with the same attention."""
    return next(
        (
            other
            for of_run, other in rows
            if other.way == written.way and of_run.configuration == run.configuration.reference
        ),
        None,
    )


def _text(generation: Generation, *, reference: Generation | None, longest: int) -> str:
    """The text, and the error that ended it; where it is cut, so that the divergence is seen."""
    text, expected = (_quoted(each) for each in (generation, reference))
    error = "" if generation.error is None else f"{generation.error} after "
    if reference is None or text == expected:
        return f"{error}{text}"[:longest]
    at = next(
        (
            number
            for number, pair in enumerate(zip(text, expected, strict=False))
            if len(set(pair)) > 1
        ),
        min(len(text), len(expected)),
    )
    if at + len(error) < longest - _AFTER:
        return f"{error}{text}"[:longest]
    start = max(0, at - (longest - _AFTER) // 2)
    return f"{error}\N{HORIZONTAL ELLIPSIS}{text[start:]}"[:longest]


def _quoted(generation: Generation | None) -> str:
    return repr((generation.text if generation else "") or "")
