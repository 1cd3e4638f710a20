"""What stands beside the choice: a comparison of devices, remedies, engines, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.quantities import num_bytes
from precheck.render.parts.columns import Column, table
from precheck.render.parts.words import DASH, VERDICT_MARKS, Mark, shown, verdict_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.advice import AttentionOption, EngineAdvice, Fit, Recommendation
    from precheck.records.report import Report

_UNKNOWN = Mark("?", "yellow")
_REFUSED = Mark(DASH, "dim")


def deployment(report: Report, *, width: int) -> Iterator[tuple[RenderableType, ...]]:
    """Sections for the devices that were asked for or found; none where the CPU is all there is."""
    wanted = _wanted(report)
    if report.recommendation is None or report.recommendation not in wanted:
        if any(each.dtype is not None for each in wanted):
            hint = "Engines, attention kernels and memory of a GPU: --gpu NAME (precheck gpus)"
            yield (Text(hint, style="dim"),)
        return
    if len(wanted) > 1:
        yield (Text("Devices", style="bold"), table(comparison_columns(report), width=width))
    first = wanted[0]
    name = shown(first.target.name)
    if first.remedies:
        yield (Text(f"Smaller remedies on {name}", style="bold"), *_remedies(first))
    if first.engines:
        title = f"Engines on {name}, as their source was on {shown(first.engines[0].read)}"
        yield (Text(title, style="bold"), _engines(first.engines))
    if first.attention:
        dtype = shown(first.attention[0].dtype)
        yield (
            Text(f"Attention in {dtype} on {name}", style="bold"),
            _attention(first.attention),
        )


def _wanted(report: Report) -> list[Recommendation]:
    """The advice for all devices but a CPU."""
    return [each for each in report.recommendations if each.target.name != "cpu"]


def comparison_columns(report: Report) -> list[Column]:
    """A row for each device."""
    wanted = _wanted(report)

    def column(header: str, cells: list[Text], *, rank: int = 0) -> Column:
        return Column(header=header, cells=cells, rank=rank, justify="left")

    return [
        column("device", [Text(shown(each.target.name), style="bold") for each in wanted]),
        column("use", [_use(each) for each in wanted]),
        column("sdpa runs", [Text(shown(_sdpa(each))) for each in wanted], rank=2),
        column("memory", [Text(_memory(each)) for each in wanted], rank=1),
        column("weights", [_weights(each) for each in wanted]),
        column("tokens of cache", [Text(_tokens(each)) for each in wanted], rank=1),
        column("unsafe by default", [_unsafe(each) for each in wanted]),
    ]


def _use(each: Recommendation) -> Text:
    if each.dtype is None:
        return Text("nothing", style="red")
    return Text(shown(f"{each.dtype} + {each.attn_implementation}"))


def _chosen_fit(each: Recommendation) -> Fit | None:
    return next((fit for fit in each.fits if fit.dtype == each.dtype), None)


def _sdpa(each: Recommendation) -> str:
    found = [option.kernel for option in each.attention if option.kernel is not None]
    return found[0].partition(",")[0] if found else DASH


def _memory(each: Recommendation) -> str:
    return DASH if each.target.memory_bytes is None else num_bytes(each.target.memory_bytes)


def _weights(each: Recommendation) -> Text:
    found = _chosen_fit(each)
    if found is None:
        return Text(DASH)
    size = num_bytes(found.weights_bytes)
    return Text(f"{size}, too large", style="red") if found.fits is False else Text(size)


def _tokens(each: Recommendation) -> str:
    found = _chosen_fit(each)
    if found is None or found.num_cache_tokens is None:
        return DASH
    return f"{found.num_cache_tokens:,}"


def _unsafe(each: Recommendation) -> Text:
    names = [engine.engine for engine in each.engines if engine.is_default_safe is False]
    return Text(shown(", ".join(names)), style="red") if names else Text(DASH)


def _engines(engines: tuple[EngineAdvice, ...]) -> Table:
    grid = _grid()
    for each in engines:
        mark = _engine_mark(each)
        name = Text(f"{mark.symbol} {shown(each.engine)}", style=mark.style)
        grid.add_row(name, Text(shown(f"{each.default} ({each.version})")))
        if each.command is not None:
            grid.add_row("", Text(shown(each.command), style="cyan"))
        elif each.default_dtype is not None:
            grid.add_row("", Text(shown(each.why)))
    return grid


def _engine_mark(each: EngineAdvice) -> Mark:
    if each.default_dtype is None:
        return _REFUSED
    if each.is_default_safe is None:
        return _UNKNOWN
    return VERDICT_MARKS[Verdict.SAFE if each.is_default_safe else Verdict.OVERFLOW]


def _attention(options: tuple[AttentionOption, ...]) -> Table:
    grid = _grid(columns=3)
    for each in options:
        if not each.usable:
            grid.add_row(shown(each.attn_implementation), Text(DASH, style="dim"), shown(each.why))
            continue
        verdict = Text("? not measured", style="yellow")
        if each.verdict is not None:
            verdict = verdict_text(each.verdict)
        said = f"{each.kernel}: {each.why}" if each.kernel else each.why
        how = "; ".join(part for part in (each.confidence, shown(said)) if part)
        grid.add_row(shown(each.attn_implementation), verdict, how)
    return grid


def _remedies(each: Recommendation) -> Iterator[RenderableType]:
    grid = _grid()
    for remedy in each.remedies:
        mark = VERDICT_MARKS[Verdict.SAFE if remedy.helps else Verdict.OVERFLOW]
        helps = "helps" if remedy.helps else "does not help"
        grid.add_row(
            Text(f"{mark.symbol} {helps}", style=mark.style),
            Text(f"{shown(remedy.what)}: {shown(remedy.why)} ({remedy.confidence})"),
        )
    yield grid
    for remedy in each.remedies:
        for line in (remedy.snippet or "").splitlines():
            yield Text(f"    {shown(line)}", style="cyan", overflow="fold")


def _grid(*, columns: int = 2) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    for _ in range(columns - 1):
        grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    return grid
