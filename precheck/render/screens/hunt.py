"""What a search for the worst prompts found, for a terminal."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from precheck.records.outcomes.hunt import HuntStatus, Picture
from precheck.records.precision import headroom_bits
from precheck.records.quantities import bits, counted, duration, magnitude
from precheck.render.parts.columns import Column, table
from precheck.render.parts.printed import printed
from precheck.render.parts.words import DASH, shown, verdict_text
from precheck.render.parts.wrapping import Wrapped, command, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.outcomes.hunt import CheckedRun, Hunt, HuntRow, WorstPrompt

MOST_ROWS = 12
_LONGEST_PROMPT = 40
_LONGEST_QUOTED = 120


def render_hunt(hunt: Hunt, *, output: str | None, width: int, colour: bool) -> str:
    """What was found, how it was found, and the next command.

    Args:
        hunt: the search.
        output: the file that the prompts were written to; None without one.
        width: columns.
        colour: whether the terminal shows colours.
    """
    blocks = (*_blocks(hunt, width=width), Text(), *_ending(hunt, output))
    return printed(Group(*blocks), width=width, colour=colour)


def _blocks(hunt: Hunt, *, width: int) -> Iterator[RenderableType]:
    yield from _headline(hunt)
    for run in hunt.runs:
        yield _run_line(run)
    yield Text()
    yield table(_columns(hunt), width=width)
    if len(hunt.rows) > MOST_ROWS:
        yield _indented(f"and {counted(len(hunt.rows) - MOST_ROWS, 'row')} more: --json")
    yield Text()
    yield _indented(_effort(hunt))
    if hunt.parts_left:
        yield _indented(f"the time did not suffice for: {', '.join(hunt.parts_left)}")


def _headline(hunt: Hunt) -> Iterator[Wrapped]:
    refuted = [row for row in hunt.rows if row.status is HuntStatus.REFUTED]
    if not refuted:
        text = (
            f"? {shown(hunt.model)}: no prompt that was found overflows in {hunt.dtype}; "
            "that is no proof"
        )
        yield wrapped(Text(text, style="bold yellow"))
        return
    worst = next((row for row in refuted if row.prompt is not None), refuted[0])
    for_what = "for a built-in probe" if worst.prompt is None else "for this prompt:"
    yield wrapped(
        Text(
            f"✗ {shown(hunt.model)}: refuted: {hunt.dtype} overflows in "
            f"{shown(worst.module or 'the model')} {for_what}",
            style="bold red",
        )
    )
    if worst.prompt is not None:
        yield _indented(quoted(hunt.prompts[worst.prompt], longest=_LONGEST_QUOTED))
    yield _indented(
        f"{worst.mechanism.phrase}: {magnitude(worst.found_abs_max)} "
        f"(limit {magnitude(worst.limit)}; built-in probes: {magnitude(worst.probes_abs_max)})"
    )


def _run_line(run: CheckedRun) -> Wrapped:
    what = verdict_text(run.verdict).plain
    reason = f": {run.reason}" if run.reason else ""
    return _indented(f"{run.name}: {what}{reason}")


def _columns(hunt: Hunt) -> tuple[Column, ...]:
    rows = hunt.rows[:MOST_ROWS]

    def left(header: str, cells: list[str], *, rank: int = 0) -> Column:
        texts = [Text(shown(cell)) for cell in cells]
        return Column(header=header, cells=texts, rank=rank, justify="left")

    def right(header: str, cells: list[Text], *, rank: int = 0) -> Column:
        return Column(header=header, cells=cells, rank=rank)

    return (
        left("mechanism", [row.mechanism.replace("_", " ") for row in rows]),
        right("layer", [Text(DASH if row.layer is None else str(row.layer)) for row in rows]),
        left("result of", [row.module or "the model" for row in rows], rank=5),
        right("probes", [Text(magnitude(row.probes_abs_max)) for row in rows]),
        right("found", [Text(magnitude(row.found_abs_max)) for row in rows]),
        right("limit", [Text(magnitude(row.limit)) for row in rows], rank=4),
        right("bits before", [_bits(row.probes_abs_max, hunt) for row in rows], rank=3),
        right("bits", [_bits(row.found_abs_max, hunt) for row in rows]),
        left("status", [_status(row) for row in rows], rank=1),
        left("prompt", [_prompt(row, hunt) for row in rows], rank=2),
    )


def _bits(value: float, hunt: Hunt) -> Text:
    left = headroom_bits(value, hunt.dtype)
    if left is None:
        return Text(DASH)
    return Text(bits(left), style="red" if left < 0 else "")


def _status(row: HuntRow) -> str:
    return "exact" if row.is_exact and row.status is HuntStatus.OPEN else row.status


def _prompt(row: HuntRow, hunt: Hunt) -> str:
    if row.prompt is None:
        return "a built-in probe"
    return quoted(hunt.prompts[row.prompt], longest=_LONGEST_PROMPT)


def quoted(prompt: WorstPrompt, *, longest: int) -> str:
    """A prompt as Python would write it, shortened; ids where it is no text."""
    if prompt.picture is not None:
        return _pictured(prompt.picture)
    text = f"ids {list(prompt.token_ids)}" if prompt.text is None else repr(prompt.text)
    text = shown(text)
    size = f" ({len(prompt.token_ids):,} tokens)"
    return text if len(text) <= longest else f"{text[: longest - 1]}…{size}"


def _pictured(picture: Picture) -> str:
    """The image of a prompt in words: its size, and what else is not as usual."""
    plain = Picture(width=picture.width, height=picture.height)
    said = [
        f"{name} {getattr(picture, name):.3g}"
        for name in ("contrast", "brightness", "noise")
        if getattr(picture, name) != getattr(plain, name)
    ]
    if picture.colour != plain.colour:
        said.append(f"colour {', '.join(f'{each:.2g}' for each in picture.colour)}")
    return ", ".join([f"{picture.pattern} of {picture.width:,} x {picture.height:,} pixels", *said])


def _effort(hunt: Hunt) -> str:
    kinds = "texts" if hunt.has_tokenizer else "token ids"
    return (
        f"{hunt.num_inputs:,} inputs in {hunt.num_forwards:,} forwards of float32 + "
        f"{hunt.attn_implementation}, {hunt.num_tokens:,} tokens, {duration(hunt.seconds)}, seed "
        f"{hunt.seed}; {kinds} up to {counted(hunt.longest_tokens, 'token')}"
    )


def _ending(hunt: Hunt, output: str | None) -> Iterator[RenderableType]:
    model = quote(shown(hunt.model))
    if output is None:
        yield Text("nothing was written")
        yield command(f"next: precheck hunt {model} -o worst.jsonl", style="")
        return
    file = quote(shown(output))
    yield wrapped(Text(f"wrote {counted(len(hunt.prompts), 'prompt')}: {file}"))
    yield command(f"next: precheck scan {model} --prompts {file}", style="")


def _indented(text: str) -> Wrapped:
    return wrapped(Text(shown(text)), indent=2)
