"""The parts of a search for the worst inputs, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.measure.hunt import sweeps
from precheck.measure.hunt.budget import SearchOverError
from precheck.measure.hunt.first_layer import first_layer
from precheck.measure.hunt.images import images
from precheck.measure.hunt.pairs import pairs_by_lane, pairs_by_layer
from precheck.measure.hunt.swaps import swaps

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from precheck.measure.hunt.text_space import Ids
    from precheck.measure.hunt.trial import Trial

REPEATED_TIMES = 8
PARTS = (
    "built-in probes",
    "images",
    "first tokens",
    "pairs by lane",
    "repeated tokens",
    "lengths",
    "pairs by layer",
    "odd token ids",
    "first layer",
    "every token repeated",
)
"""Those that have an end."""


def search(
    trial: Trial,
    *,
    probes: Sequence[Ids],
    likely: Sequence[int],
    longest: int,
    done: set[str],
) -> None:
    """Fills the archive until the budget is used.

    Args:
        trial: what to search with.
        probes: token ids that a scan ran.
        likely: tokens that may matter as the first one.
        longest: tokens of the longest input that memory allows.
        done: names of parts that are over; those that end before their share does are added.
    """
    parts: tuple[tuple[str, float, Callable[[], None]], ...] = (
        ("built-in probes", 0.1, lambda: sweeps.probes(trial, probes)),
        ("images", 0.2, lambda: images(trial)),
        ("first tokens", 0.3, lambda: sweeps.first_tokens(trial, likely=likely)),
        ("pairs by lane", 0.1, lambda: pairs_by_lane(trial)),
        ("repeated tokens", 0.1, lambda: sweeps.repeated(trial)),
        ("lengths", 0.1, lambda: sweeps.lengths(trial, longest=longest)),
        ("pairs by layer", 0.1, lambda: pairs_by_layer(trial)),
        ("odd token ids", 0.05, lambda: sweeps.odd_ids(trial)),
        ("first layer", 0.15, lambda: first_layer(trial)),
        ("swaps", 0.1, lambda: swaps(trial)),
        (
            "every token repeated",
            0.2,
            lambda: sweeps.every_token_repeated(trial, times=REPEATED_TIMES),
        ),
        ("swaps to the end", 1.0, lambda: swaps(trial)),
    )
    try:
        for name, share, run in parts:
            if name not in done:
                with trial.within(name, share=share):
                    run()
                    done.add(name)
    except SearchOverError:
        return
