"""A served run without what is private."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.records.outcomes.served import Served
from precheck.render.parts.redaction import cleaned

if TYPE_CHECKING:
    from collections.abc import Sequence


def redacted_served(
    served: Served, *, home: str | None, names: Sequence[str], prompts: Sequence[str]
) -> Served:
    """The same without home folders, user names, tokens, and the user's own prompts.

    Args:
        served: what was found.
        home: the home folder, where it is not one of the usual ones.
        names: of users.
        prompts: texts to redact wherever they are quoted.
    """
    if served.is_of_own_prompts:
        place = served.difference
        served = replace(
            served,
            answers=(),
            difference=None
            if place is None
            else replace(place, token_ids=(), tokens=("",) * len(place.tokens)),
        )
    return Served.from_dict(
        cleaned(served.to_dict(), model=served.model, home=home, names=names, prompts=prompts)
    )
