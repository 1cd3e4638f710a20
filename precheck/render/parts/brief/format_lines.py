"""How an engine is asked for the formats that may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.facts.deployed_formats import bits, cache_off, on_device, spelling
from precheck.facts.engines import EngineName
from precheck.records.finding import USABLE
from precheck.records.loss import loss
from precheck.records.quantities import listed, nats
from precheck.render.parts.stored_formats.groups import groups, label
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.gate import Gate
    from precheck.records.report import Report, Run

_CACHE, _WEIGHTS = "kv:", "q:"


def required_flags(gate: Gate, engine: str, *, dtype: str | None) -> str:
    """Flags that go behind an engine's command, a blank before each; empty without any.

    Args:
        gate: the answer for what is required.
        engine: as it spells itself.
        dtype: what the command is for.
    """
    flags = [
        spelled.flag
        for configuration in _required(gate)
        if configuration.dtype == dtype
        for name in configuration.formats
        if (spelled := spelling(name, engine=_named(engine))).is_appended
    ]
    return "".join(f" {flag}" for flag in dict.fromkeys(flags))


def format_lines(
    report: Report, gate: Gate, engine: str, *, commands: str
) -> Iterator[tuple[str, Text]]:
    """What else to type: for the formats that are required, else for those measured usable.

    Args:
        report: what is shown.
        gate: the answer for what is required.
        engine: as it spells itself.
        commands: what is shown above it.
    """
    if not groups(report) or not report.complete:
        return
    judged = [row for row in gate.deployments if row.configuration.has_format]
    named = _named(engine)
    lines = _of_required(gate, named, commands) if judged else _of_usable(report, named)
    for number, line in enumerate(lines):
        yield "" if number else "format", line


def _of_required(gate: Gate, engine: EngineName, commands: str) -> Iterator[Text]:
    for configuration in _required(gate):
        for name in configuration.formats:
            spelled = spelling(name, engine=engine)
            if spelled.note or spelled.flag is None or spelled.flag not in commands:
                yield _line(f"{name} in {configuration.dtype}", name, engine)
    refused = [
        row for row in gate.deployments if not row.holds and row.configuration.kv_cache_dtype
    ]
    off = cache_off(engine)
    if refused and off is not None:
        yield Text(f"{off} keeps keys and values in the dtype")


def _required(gate: Gate) -> tuple[Configuration, ...]:
    """What was required in a format, and may be deployed."""
    return tuple(dict.fromkeys(row.configuration for row in gate.deployments if row.holds))


def _of_usable(report: Report, engine: EngineName) -> Iterator[Text]:
    """A line each for the key-value cache and the weights, where formats of them were measured."""
    runs = [run for group in groups(report) for run in group.runs]
    alone = [
        run for run in runs if len(run.configuration.formats) == 1 and not _is_refused(report, run)
    ]
    for kind in (_CACHE, _WEIGHTS):
        measured = [run for run in alone if label(run).startswith(kind)]
        if measured:
            yield from _best(measured, engine, is_cache=kind == _CACHE)


def _best(measured: list[Run], engine: EngineName, *, is_cache: bool) -> Iterator[Text]:
    """The smallest usable format; of those of as many bits, the one that loses least."""
    usable = [run for run in measured if run.verdict in USABLE]
    had = [run for run in usable if _has(engine, label(run))]
    off = cache_off(engine)
    if had:
        best = min(had, key=lambda run: _order(run, engine))
        yield _line(f"{label(best)} in {best.dtype}{_figure(best)}", label(best), engine)
    elif usable:
        names = listed(tuple(label(run) for run in usable))
        yield Text(shown(f"{engine.label} has none of those measured usable: {names}"))
    elif is_cache and off is not None:
        yield Text(f"{off}: no format of the key-value cache was measured usable")


def _is_refused(report: Report, run: Run) -> bool:
    """Whether the device that the advice is for does not run the format."""
    advised = report.recommendation
    where = None if advised is None else advised.target.compute_capability
    special = on_device(label(run), where)
    return special is not None and special.is_refused


def _order(run: Run, engine: EngineName) -> tuple[int, bool, float]:
    """What needs no more than a flag comes first among those of as many bits."""
    name = label(run)
    needs_more = bool(spelling(name, engine=engine).note)
    return int(bits(name) or 0), needs_more, loss(run).kl_divergence or 0.0


def _figure(run: Run) -> str:
    figure = loss(run).kl_divergence
    return "" if figure is None else f" (KL {nats(figure)})"


def _has(engine: EngineName, name: str) -> bool:
    """Whether it can be told how to use it: who named no engine is told of any that has it."""
    return engine is EngineName.TRANSFORMERS or spelling(name, engine=engine).exists


def _line(said: str, name: str, engine: EngineName) -> Text:
    """What is said of a format, and how to ask for it; a flag is to be copied, and stays whole."""
    having = (other for other in EngineName if spelling(name, engine=other).exists)
    spelled, of = spelling(name, engine=engine), ""
    if not spelled.exists and (other := next(having, None)) is not None:
        spelled, of = spelling(name, engine=other), f"{other.label}: "
    if spelled.flag is None:
        return Text(shown(f"{said}: {of}{spelled.note}"))
    note = f" ({spelled.note})" if spelled.note else ""
    return Text(shown(f"{said}: {of}{spelled.flag}{note}"), no_wrap=True)


def _named(engine: str) -> EngineName:
    return next(name for name in EngineName if name.label == engine)
