"""What goes with the choice: a comparison of devices, remedies, engines, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.finding import Verdict
from precheck.records.quantities import num_bytes
from precheck.render.parts.columns import Column, table
from precheck.render.parts.words import DASH, VERDICT_MARKS, Mark, shown, verdict_text
from precheck.render.parts.wrapping import command, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

    from precheck.records.advice import AttentionOption, EngineAdvice, Fit, Recommendation
    from precheck.records.report import Report

_UNKNOWN = Mark("?", "yellow")
_REFUSED = Mark(DASH, "dim")


def deployment(report: Report, *, width: int) -> Iterator[tuple[RenderableType, ...]]:
    """Sections for the devices that were named or found; none if there is only the CPU."""
    advised = _on_accelerators(report)
    if report.recommendation is None or report.recommendation not in advised:
        if any(advice.dtype is not None for advice in advised):
            hint = "Engines, kernels and memory of a GPU: --gpu NAME (list: precheck gpus)"
            yield (Text(hint, style="dim"),)
        return
    if len(advised) > 1:
        yield (Text("Devices", style="bold"), table(comparison_columns(report), width=width))
    first = advised[0]
    name = shown(first.target.name)
    if first.remedies:
        yield (Text(f"Smaller remedies on {name}", style="bold"), *_remedies(first))
    if first.engines:
        title = f"Serving engines on {name} (source checked {shown(first.engines[0].read)})"
        yield (Text(title, style="bold"), *_engines(first.engines))
    if first.attention:
        dtype = shown(first.attention[0].dtype)
        yield (
            Text(f"Attention in {dtype} on {name}", style="bold"),
            *_attention(first.attention),
        )


def _on_accelerators(report: Report) -> list[Recommendation]:
    """The advice for every device that is not a CPU."""
    return [
        recommendation
        for recommendation in report.recommendations
        if recommendation.target.name != "cpu"
    ]


def comparison_columns(report: Report) -> list[Column]:
    """A row for each device."""
    advised = _on_accelerators(report)

    def column(header: str, cells: list[Text], *, rank: int = 0) -> Column:
        return Column(header=header, cells=cells, rank=rank, justify="left")

    return [
        column(
            "device",
            [Text(shown(advice.target.name), style="bold") for advice in advised],
        ),
        column("use", [_use(advice) for advice in advised]),
        column("sdpa kernel", [Text(shown(_sdpa(advice))) for advice in advised], rank=2),
        column("memory", [Text(_memory(advice)) for advice in advised], rank=1),
        column("weights", [_weights(advice) for advice in advised]),
        column("cache tokens", [Text(_tokens(advice)) for advice in advised], rank=1),
        column("unsafe by default", [_unsafe(advice) for advice in advised]),
    ]


def _use(advised: Recommendation) -> Text:
    if advised.dtype is None:
        return Text("nothing", style="red")
    return Text(shown(f"{advised.dtype} + {advised.attn_implementation}"))


def _chosen_fit(advised: Recommendation) -> Fit | None:
    return next((fit for fit in advised.fits if fit.dtype == advised.dtype), None)


def _sdpa(advised: Recommendation) -> str:
    kernels = [option.kernel for option in advised.attention if option.kernel is not None]
    return kernels[0].partition(",")[0] if kernels else DASH


def _memory(advised: Recommendation) -> str:
    return DASH if advised.target.memory_bytes is None else num_bytes(advised.target.memory_bytes)


def _weights(advised: Recommendation) -> Text:
    fit = _chosen_fit(advised)
    if fit is None:
        return Text(DASH)
    size = num_bytes(fit.weights_bytes)
    return Text(f"{size}, too large", style="red") if fit.fits is False else Text(size)


def _tokens(advised: Recommendation) -> str:
    fit = _chosen_fit(advised)
    if fit is None or fit.num_cache_tokens is None:
        return DASH
    return f"{fit.num_cache_tokens:,}"


def _unsafe(advised: Recommendation) -> Text:
    names = [engine.engine for engine in advised.engines if engine.is_default_safe is False]
    return Text(shown(", ".join(names)), style="red") if names else Text(DASH)


def _engines(engines: tuple[EngineAdvice, ...]) -> Iterator[RenderableType]:
    rows: list[tuple[Text, Text]] = []
    for engine in engines:
        mark = _engine_mark(engine)
        name = Text(f"{mark.symbol} {shown(engine.engine)}", style=mark.style)
        rows.append((name, Text(shown(f"{engine.default} ({engine.version})"))))
        if engine.command is not None:
            rows.append((Text(), Text(shown(engine.command), style="cyan")))
        elif engine.default_dtype is not None:
            rows.append((Text(), Text(shown(engine.why))))
    yield from labelled(rows)


def _engine_mark(engine: EngineAdvice) -> Mark:
    if engine.default_dtype is None:
        return _REFUSED
    if engine.is_default_safe is None or (engine.is_default_safe and engine.command is None):
        return _UNKNOWN  # no tick beside "nothing is known to be safe"
    return VERDICT_MARKS[Verdict.SAFE if engine.is_default_safe else Verdict.OVERFLOW]


def _attention(options: tuple[AttentionOption, ...]) -> Iterator[RenderableType]:
    yield from labelled(
        (
            Text(shown(option.attn_implementation)),
            Text.assemble(_standing(option), "  ", _how(option)),
        )
        for option in options
    )


def _standing(option: AttentionOption) -> Text:
    if not option.usable:
        return Text(DASH, style="dim")
    if option.verdict is None:
        return Text("? not measured", style="yellow")
    return verdict_text(option.verdict)


def _how(option: AttentionOption) -> str:
    if not option.usable:
        return shown(option.why)
    kernel = f"{option.kernel}: {option.why}" if option.kernel else option.why
    return "; ".join(part for part in (option.confidence, shown(kernel)) if part)


def _remedies(advised: Recommendation) -> Iterator[RenderableType]:
    rows: list[tuple[Text, Text]] = []
    for remedy in advised.remedies:
        mark = VERDICT_MARKS[Verdict.SAFE if remedy.helps else Verdict.OVERFLOW]
        helps = "helps" if remedy.helps else "does not help"
        what = Text(f"{shown(remedy.what)}: {shown(remedy.why)} ({remedy.confidence})")
        rows.append((Text(f"{mark.symbol} {helps}", style=mark.style), what))
    yield from labelled(rows)
    for remedy in advised.remedies:
        for line in (remedy.snippet or "").splitlines():
            yield command(f"    {shown(line)}")
