"""What other weights cost, for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.records.quantities import counted, listed, magnitude, nats, num_bytes, percent
from precheck.render.parts.printed import printed
from precheck.render.parts.words import shown
from precheck.render.parts.wrapping import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.outcomes.weights_cost import WeighedModel, WeightsCost
    from precheck.records.traces import LogitsTrace

_INDENT = 2


def render_weights_cost(cost: WeightsCost, *, width: int, colour: bool) -> str:
    """The figure that decides first, then the others, and the error of every layer.

    Args:
        cost: what was measured.
        width: columns of the terminal.
        colour: with ANSI colours.
    """
    return printed(*_lines(cost), width=width, colour=colour)


def _lines(cost: WeightsCost) -> Iterator[RenderableType]:
    mark, style = ("✗", "bold red") if cost.too_much else ("✓", "bold green")
    yield wrapped(Text(f"{mark} {_headline(cost)}", style=style))
    yield wrapped(Text(_side("of", cost.other)), indent=_INDENT)
    yield wrapped(Text(_side("against", cost.reference)), indent=_INDENT)
    scope = f"float32, {counted(cost.num_probes, 'probe')}, {counted(cost.num_tokens, 'token')}"
    yield wrapped(Text(scope), indent=_INDENT)
    if cost.retokenised:
        names = listed(cost.retokenised)
        yield wrapped(
            Text(
                f"its own tokenizer splits {counted(len(cost.retokenised), 'text')} in another "
                f"way ({names}); the figures are for the tokens of the other"
            ),
            indent=_INDENT,
        )
    if cost.has_no_tokenizer:
        yield wrapped(Text("it has no tokenizer of its own that works here"), indent=_INDENT)
    if cost.run.logits is not None:
        yield Text()
        yield _grid(list(_figures(cost.run.logits)))
    yield Text()
    yield Text("Relative error by layer", style="bold")
    yield _grid(
        [
            (layer.module, "" if layer.relative_error is None else percent(layer.relative_error))
            for layer in cost.run.layers
        ]
    )


def _headline(cost: WeightsCost) -> str:
    if cost.run.failure is not None:
        return f"it could not be run: {shown(cost.run.failure)}"
    broken = [layer.module for layer in cost.run.layers if not layer.is_finite]
    if broken:
        return f"NaN or infinite from {shown(broken[0])} on"
    logits = cost.run.logits
    if logits is None or logits.kl_divergence_verdict is None:
        return "no scores to compare"
    words = "costs too much" if cost.too_much else "costs little"
    return (
        f"{listed(cost.other.stored_as, most=2)} {words}: KL divergence "
        f"{nats(logits.kl_divergence_verdict)} nats"
    )


def _side(word: str, model: WeighedModel) -> str:
    stored = listed(model.stored_as)
    return f"{word} {shown(model.id)} ({stored}, {num_bytes(model.size_bytes)})"


def _figures(logits: LogitsTrace) -> Iterator[tuple[str, str]]:
    yield (
        "KL divergence, mean and largest",
        " ".join(
            nats(figure)
            for figure in (logits.kl_divergence_mean, logits.kl_divergence_max)
            if figure is not None
        ),
    )
    if logits.top1_agreement is not None:
        yield "same first choice", percent(logits.top1_agreement)
    if logits.perplexity is not None and logits.reference_perplexity is not None:
        before, after = logits.reference_perplexity, logits.perplexity
        yield "perplexity", f"{magnitude(before)}, with these weights {magnitude(after)}"
    divergence = logits.first_greedy_divergence
    if divergence is not None:
        where = f"token {divergence.position} of {shown(divergence.probe)}"
        yield "greedy decoding parts at", where


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table(box=None, pad_edge=False, padding=(0, _INDENT, 0, _INDENT), show_header=False)
    for what, value in rows:
        grid.add_row(Text(shown(what)), Text(value))
    return grid
