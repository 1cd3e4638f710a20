"""A served run in files: everything as JSON, and a bug report for the engine's maintainers."""

from __future__ import annotations

import json
import math
from shlex import quote
from typing import TYPE_CHECKING

from rich.text import Text

from precheck.records.quantities import nats, percent
from precheck.render.parts.columns import Column
from precheck.render.parts.json_text import json_text
from precheck.render.parts.markdown import block, code, prose, table
from precheck.render.parts.served.words import legend, server_lines
from precheck.render.parts.words import DASH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.served import Difference, Served

_MOST_IDS = 400
"""Token ids in a command; longer prompts are in the JSON file."""


def render_json(served: Served) -> str:
    """Everything, as JSON that ``Served.from_dict`` reads back.

    Raises:
        ValueError: a figure is not finite, which JSON cannot say and a served run never holds.
    """
    return json_text(served.to_dict())


def render_bug_report(served: Served) -> str:
    """What maintainers ask for first, in Markdown: to paste into an issue."""
    return "\n\n".join(_parts(served)) + "\n"


def _parts(served: Served) -> Iterator[str]:
    engine = served.server.engine or "the server"
    yield f"# {prose(f'{engine} {served.sentence}')}"
    for finding in served.findings:
        yield f"- **{finding.code}** {prose(finding.message)}"
    yield "## What was compared"
    command = f"precheck verify {quote(served.server.url)} {quote(served.model)}"
    lines = (*map(prose, _facts(served)), code(command))
    yield "\n".join(f"- {line}" for line in lines)
    if served.verdict_of_checkpoint is not None:
        yield (
            "Is it the model? The checkpoint itself, run by transformers in that configuration: "
            f"{prose(served.verdict_of_checkpoint)}."
        )
    if served.distances:
        yield table(_distances(served))
        yield prose(legend(served))
    if served.difference is not None:
        yield from _difference(served, served.difference)
    yield "## Versions"
    yield "\n".join(f"- {prose(line)}" for line in _versions(served))


def _facts(served: Served) -> Iterator[str]:
    yield from server_lines(served)
    for name, value in served.server.own_words.items():
        yield f"{name}: {value}"


def _distances(served: Served) -> tuple[Column, ...]:
    rows = served.distances

    def figures(header: str, values: list[float | None]) -> Column:
        cells = [Text(DASH if value is None else nats(value)) for value in values]
        return Column(header=header, cells=cells, rank=1)

    return (
        Column(
            header="configuration",
            cells=[Text(str(row.configuration)) for row in rows],
            justify="left",
        ),
        figures("KL, prompt", [row.prefill for row in rows]),
        figures("KL, generated", [row.decoded for row in rows]),
        figures("explained by rounding", [row.expected for row in rows]),
        figures("contradicted", [row.contradiction for row in rows]),
        Column(
            header="same first choice",
            cells=[
                Text(DASH if row.top1_agreement is None else percent(row.top1_agreement))
                for row in rows
            ],
            rank=1,
        ),
    )


def _difference(served: Served, place: Difference) -> Iterator[str]:
    yield "## The first position that differs"
    yield prose(
        f"Prompt {place.probe}, position {place.position}: the probability of each next token by"
        f" the server, by {served.distances[served.fingerprint.nearest or 0].configuration}, and in"
        " float32."
    )

    def column(header: str, values: tuple[float | None, ...]) -> Column:
        cells = [Text(DASH if value is None else f"{math.exp(value):.6f}") for value in values]
        return Column(header=header, cells=cells)

    yield table(
        (
            Column(header="token id", cells=[Text(str(token)) for token in place.ids]),
            Column(
                header="token",
                cells=[Text(repr(text)) for text in place.tokens],
                justify="left",
            ),
            column("server", place.server),
            column("checkpoint", place.run),
            column("float32", place.reference),
        )
    )
    if 0 < len(place.token_ids) <= _MOST_IDS and served.server.takes_token_ids:
        yield block(_curl(served, place), language="sh")


def _curl(served: Served, place: Difference) -> str:
    """The request for that position alone."""
    ids, server = list(place.token_ids), served.server
    if server.api == "/completion":
        body = {
            "prompt": ids,
            "n_predict": 1,
            "temperature": 0,
            "n_probs": server.num_told,
            "post_sampling_probs": False,
        }
    else:
        body = {
            "model": server.model,
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": server.num_told,
        }
    return (
        f"curl {quote(server.url + server.api)} -H 'Content-Type: application/json'"
        f" -d {quote(json.dumps(body))}"
    )


def _versions(served: Served) -> Iterator[str]:
    server = served.server
    yield f"{server.engine or 'engine'} {server.version or '(it does not tell its version)'}"
    yield f"precheck {served.precheck_version}"
    for name, version in sorted(served.libraries.items()):
        yield f"{name} {version}"
    if served.revision is not None:
        yield f"revision {code(served.revision)}"
