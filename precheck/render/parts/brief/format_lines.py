"""How an engine is asked for the formats that may be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.facts.deployed_formats import bits, cache_off, spelling
from precheck.facts.engines import EngineName
from precheck.records.finding import USABLE
from precheck.records.loss import loss
from precheck.records.quantities import listed, nats
from precheck.render.parts.stored_formats.groups import groups, label
from precheck.render.parts.words import shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.configuration import Configuration
    from precheck.records.gate import Gate
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
    for number, words in enumerate(dict.fromkeys(lines)):
        yield "" if number else "format", Text(shown(words))


def _of_required(gate: Gate, engine: EngineName, commands: str) -> Iterator[str]:
    for configuration in _required(gate):
        for name in configuration.formats:
            spelled = spelling(name, engine=engine)
            if spelled.note or spelled.flag is None or spelled.flag not in commands:
                yield f"{name}: {_how(name, engine)}"
    refused = [
        row for row in gate.deployments if not row.holds and row.configuration.kv_cache_dtype
    ]
    off = cache_off(engine)
    if refused and off is not None:
        yield f"{off} keeps keys and values in the dtype"


def _required(gate: Gate) -> tuple[Configuration, ...]:
    """What was required in a format, and may be deployed."""
    return tuple(dict.fromkeys(row.configuration for row in gate.deployments if row.holds))


def _of_usable(report: Report, engine: EngineName) -> Iterator[str]:
    """A line each for the key-value cache and the weights, where formats of them were measured."""
    runs = [run for group in groups(report) for run in group.runs]
    alone = [run for run in runs if len(run.configuration.formats) == 1]
    for kind in (_CACHE, _WEIGHTS):
        measured = [run for run in alone if label(run).startswith(kind)]
        if measured:
            yield from _best(measured, engine, is_cache=kind == _CACHE)


def _best(measured: list[Run], engine: EngineName, *, is_cache: bool) -> Iterator[str]:
    """The smallest usable format; of those of as many bits, the one that loses least."""
    usable = [run for run in measured if run.verdict in USABLE]
    had = [run for run in usable if _has(engine, label(run))]
    off = cache_off(engine)
    if had:
        best = min(had, key=_order)
        yield f"{label(best)}{_figure(best)}: {_how(label(best), engine)}"
    elif usable:
        names = listed(tuple(label(run) for run in usable))
        yield f"{engine.label} has none of those measured usable: {names}"
    elif is_cache and off is not None:
        yield f"{off}: no format of the key-value cache was measured usable"


def _order(run: Run) -> tuple[int, float]:
    return int(bits(label(run)) or 0), loss(run).kl_divergence or 0.0


def _figure(run: Run) -> str:
    figure = loss(run).kl_divergence
    return "" if figure is None else f" (KL {nats(figure)})"


def _has(engine: EngineName, name: str) -> bool:
    """Whether it can be told how to use it: who named no engine is told of any that has it."""
    return engine is EngineName.TRANSFORMERS or spelling(name, engine=engine).exists


def _how(name: str, engine: EngineName) -> str:
    """Flag and condition; those of an engine that has the format where this one has not."""
    spelled = spelling(name, engine=engine)
    words = " ".join(filter(None, (spelled.flag, spelled.note)))
    if spelled.exists:
        return words
    for other in EngineName:
        elsewhere = spelling(name, engine=other)
        if elsewhere.exists:
            how = " ".join(filter(None, (elsewhere.flag, elsewhere.note)))
            return f"{other.label} {how}"
    return words


def _named(engine: str) -> EngineName:
    return next(name for name in EngineName if name.label == engine)
