"""All findings about servers: a code, what it stands for, and the function that finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.records.finding import gravest_first
from precheck.served.findings import likeness, probabilities, reading, writing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from precheck.records.finding import Finding
    from precheck.served.evidence import Evidence


class ServedRule(NamedTuple):
    """A stable code, its title, and its findings about a server."""

    code: str
    title: str
    find: Callable[[Evidence], Iterable[Finding]]


CAUSES = (
    ServedRule("PC818", "the server's answers are no text", writing.no_numbers),
    ServedRule("PC813", "the server cuts off unlikely tokens", probabilities.cut_off),
    ServedRule("PC812", "the server scales its logits", probabilities.scaled),
    ServedRule("PC814", "the server penalises tokens that occurred", probabilities.penalised),
    ServedRule("PC816", "the server's generated tokens drift", likeness.drifting),
    ServedRule("PC811", "another checkpoint is served", likeness.another_checkpoint),
    ServedRule("PC810", "the server is like no configuration", likeness.like_none),
)
"""Why a server is like none of the configurations: the first that holds is the answer."""

SERVED_RULES = (
    ServedRule("PC801", "the server reads other tokens", reading.other_tokens),
    ServedRule("PC802", "the server's chat template is another", reading.other_template),
    ServedRule("PC803", "the server reads a part of the prompt", reading.shortened),
    *CAUSES,
    ServedRule("PC815", "the server samples at temperature 0", writing.sampled),
    ServedRule("PC817", "company changes the server's answers", writing.changed_by_company),
    ServedRule("PC820", "the server tells no log-probabilities", likeness.tokens_alone),
)
"""In the order in which they are reported."""


def find(evidence: Evidence) -> tuple[Finding, ...]:
    """What every rule finds, gravest first, then in the order of the rules."""
    found: list[Finding] = []
    is_explained = False
    for rule in SERVED_RULES:
        if rule in CAUSES and is_explained:
            continue
        of_rule = list(rule.find(evidence))
        is_explained |= rule in CAUSES and bool(of_rule)
        found += of_rule
    return gravest_first(found)
