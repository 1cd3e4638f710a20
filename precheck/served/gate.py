"""Whether a server is what it should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.finding import Severity
from precheck.records.outcomes.gate import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Served


def judge(served: Served, required: Sequence[Configuration]) -> tuple[Outcome, str]:
    """PASS, FAIL or INCOMPLETE, and why.

    A required configuration holds if the server is like it, also where others are not told apart;
    one without an attention implementation holds with any.
    """
    if served.fingerprint.nearest is None and not served.has_error:
        return Outcome.INCOMPLETE, f"the server {served.sentence}"
    first = next((one for one in served.findings if one.severity is Severity.ERROR), None)
    if first is not None:
        return Outcome.FAIL, f"{first.code}: {first.gist}"
    if required and not any(is_met(one, served.like) for one in required):
        wanted = " or ".join(map(str, required))
        return Outcome.FAIL, f"the server {served.sentence}, not {wanted}"
    return Outcome.PASS, f"the server {served.sentence}"


def is_met(wanted: Configuration, like: Sequence[Configuration]) -> bool:
    """Whether a required configuration is among these; without an attention, any is."""
    if wanted.attn_implementation:
        return wanted in like
    return any(one.with_attention("") == wanted for one in like)
