"""A served run in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.outcomes.served import Told
from precheck.records.quantities import counted, listed, times

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.served import Served


def server_lines(served: Served) -> Iterator[str]:
    """Who answers, and how."""
    server = served.server
    words = [server.engine or "an engine that does not name itself"]
    words += [server.version] if server.version else []
    context = f", context {server.max_context:,}" if server.max_context else ""
    yield f"{' '.join(words)}, model {server.model}{context} (its own words)"
    is_told = server.told is not Told.NOTHING
    told = f"log-probabilities of {server.told}" if is_told else "no log-probabilities"
    sent = "token ids" if server.takes_token_ids else "text"
    yield (
        f"{server.api}: {sent}, {told}; {counted(served.num_prompts, 'prompt')},"
        f" {counted(served.num_positions, 'position')} compared with {_compared_with(served)}"
    )
    names_by_reason: dict[str, list[str]] = {}
    for each in served.not_compared:
        name, _, reason = each.partition(": ")
        names_by_reason.setdefault(reason, []).append(name)
    for reason, names in names_by_reason.items():
        yield f"not compared: {listed(tuple(names))}: {reason}"
    if served.verdict_of_checkpoint is not None:
        yield f"the checkpoint itself: {served.verdict_of_checkpoint}"


def _compared_with(served: Served) -> str:
    if served.saved_weights is None:
        return served.model
    weights = f", weights {served.saved_weights[:12]}" if served.saved_weights else ""
    return f"saved log-probabilities of {served.model}{weights}"


def legend(served: Served) -> str:
    """What the figures of the table are."""
    if served.fingerprint.by_tokens_alone:
        return (
            "contradicted: by how much a configuration prefers other tokens; up to 1 is rounding."
        )
    margin = served.fingerprint.margin
    apart = "" if margin is None else (f" The next configuration is {times(margin)} as far.")
    return f"KL(server || run) in nats over the tokens that the server tells.{apart}"
