"""What to use on each device, with the line to paste, and why not the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from precheck.render.parts.words import shown
from precheck.render.parts.wrapping import command, labelled

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from precheck.records.advice import Recommendation
    from precheck.records.report import Report


def advice(report: Report) -> Iterator[RenderableType]:
    """A block for every configuration that is recommended somewhere, the first device's first."""
    same: dict[tuple[str | None, str | None], list[Recommendation]] = {}
    for recommendation in report.recommendations:
        same.setdefault((recommendation.dtype, recommendation.attn_implementation), []).append(
            recommendation
        )
    for (dtype, attn_implementation), devices in same.items():
        if dtype is None:
            yield from _nothing(devices)
        else:
            yield Text(shown(f"Use {dtype} + {attn_implementation}"), style="bold")
            yield from _use(devices)


def _use(devices: list[Recommendation]) -> Iterator[RenderableType]:
    first = devices[0]
    for line in first.snippets.get("transformers", "").split("\n"):
        yield command(f"    {shown(line)}")
    whys: dict[str, list[str]] = {}
    for rejected in first.rejected:
        whys.setdefault(rejected.why, []).append(rejected.name)
    rows = [
        *_under("on", [_device(device) for device in devices]),
        *_under("because", [Text(shown("; ".join(_reasons(first))))]),
        *_under(
            "not",
            [Text(f"{shown(', '.join(names))}: {shown(why)}") for why, names in whys.items()],
        ),
    ]
    yield from labelled(rows)


def _nothing(devices: list[Recommendation]) -> Iterator[RenderableType]:
    yield Text("Nothing can be recommended", style="bold")
    rows = [
        *_under("on", [Text(shown(device.target.name)) for device in devices]),
        *_under("because", [Text(shown("; ".join(devices[0].reasons)))]),
    ]
    yield from labelled(rows)


def _under(label: str, texts: Sequence[Text]) -> Iterator[tuple[Text, Text]]:
    """The texts, the first of them behind the label."""
    for text in texts:
        yield Text(f"  {label}" if text is texts[0] else "", style="dim"), text


def _device(advised: Recommendation) -> Text:
    """The device, and whether the advice was measured there; that reason is always the last."""
    how = (
        advised.reasons[-1]
        if advised.confidence == "predicted" and advised.reasons
        else advised.confidence
    )
    return Text.assemble((shown(advised.target.name), "bold"), f": {shown(how)}")


def _reasons(advised: Recommendation) -> tuple[str, ...]:
    return advised.reasons[:-1] if advised.confidence == "predicted" else advised.reasons
