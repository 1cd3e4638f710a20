"""Parameters that are stored under names which differ from the model's in one part.

A wrapper that was not taken off before saving puts its own name in front of every other
(``_orig_mod.``, ``module.``), or in the middle of them; a part of a model, saved alone, lacks what
came before it. Such a part is found by comparing names, whatever it is called.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from precheck.records.stored import Renaming

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

_MOST_SAMPLES = 64
"""Stored names that are compared with the model's to find out which part differs."""
_MOST_RENAMINGS = 4
_FEWEST, _FEWEST_EXCHANGED = 2, 8
"""Names that a part has to explain where it is in the way or lacking, and where it is another."""


class _Part(NamedTuple):
    old: str
    new: str
    is_prefix: bool

    def renamed(self, name: str) -> str:
        """The name with the part exchanged; the same where it does not have it."""
        if self.is_prefix:
            has = name.startswith(self.old)
            return self.new + name.removeprefix(self.old) if has else name
        return name.replace(f".{self.old}", f".{self.new}")


def find_renamings(
    missing: Collection[str], unexpected: Collection[str], *, fits: Callable[[str, str], bool]
) -> tuple[Renaming, ...]:
    """What to rename, the renaming that explains most first.

    Args:
        missing: parameters of the model that nothing is stored for.
        unexpected: stored names that the model does not use.
        fits: whether a stored tensor has the shape of a parameter, both by name.
    """
    wanted, left = set(missing), sorted(unexpected)
    found: list[Renaming] = []
    while wanted and left and len(found) < _MOST_RENAMINGS:
        matches = {
            part: _matched(part, left, wanted, fits) for part in sorted(_candidates(left, wanted))
        }
        best = max(matches, key=lambda part: len(matches[part]), default=None)
        if best is None or not _explains(best, matches[best], num_wanted=len(wanted)):
            break
        pairs = matches[best]
        found.append(
            Renaming(**best._asdict(), stored=tuple(pairs), parameters=tuple(pairs.values()))
        )
        wanted -= set(pairs.values())
        left = [name for name in left if name not in pairs]
    return tuple(found)


def _matched(
    part: _Part, left: Collection[str], wanted: Collection[str], fits: Callable[[str, str], bool]
) -> dict[str, str]:
    """The parameter of each stored name that the part explains, and that no other one claims."""
    renamed = {name: part.renamed(name) for name in left}
    claims = Counter(renamed.values())
    return {
        name: parameter
        for name, parameter in renamed.items()
        if parameter in wanted and claims[parameter] == 1 and fits(name, parameter)
    }


def _candidates(left: Sequence[str], wanted: Collection[str]) -> set[_Part]:
    """The part in which a stored name differs from the wanted one that ends most like it."""
    by_end: dict[str, str] = {}
    for parameter in sorted(wanted):
        for end in _ends(parameter):
            by_end.setdefault(end, parameter)
    every = max(1, len(left) // _MOST_SAMPLES)
    found: set[_Part] = set()
    for name in left[::every]:
        alike = next((by_end[end] for end in _ends(name) if end in by_end), None)
        if alike is not None:
            found.add(_difference(name, alike))
    return {part for part in found if part.is_prefix or part.old}


def _explains(part: _Part, matched: Collection[str], *, num_wanted: int) -> bool:
    """Whether this is more than a coincidence: two heads of the same shape, say."""
    if part.old and part.new:
        return len(matched) >= _FEWEST_EXCHANGED and 2 * len(matched) > num_wanted
    return len(matched) >= _FEWEST


def _ends(name: str) -> Iterator[str]:
    """What a path ends with, the longest first; at least two steps: ``down_proj.weight``."""
    steps = name.split(".")
    return (".".join(steps[start:]) for start in range(max(1, len(steps) - 1)))


def _difference(name: str, parameter: str) -> _Part:
    """The part in which two paths differ, between what they begin and what they end with."""
    old, new = name.split("."), parameter.split(".")
    shortest = min(len(old), len(new))
    head = next((i for i in range(shortest) if old[i] != new[i]), shortest)
    most = shortest - head
    tail = next((i for i in range(most) if old[-1 - i] != new[-1 - i]), most)
    old_part, new_part = (
        "".join(f"{step}." for step in path[head : len(path) - tail]) for path in (old, new)
    )
    return _Part(old_part, new_part, is_prefix=head == 0)
