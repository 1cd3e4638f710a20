"""What is known of each finding: the sections of ``docs/findings.md``, which is in the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter

from precheck.errors import UsageError

_HEADING = re.compile(r"^## (PC\d{3}): (.+)$", re.MULTILINE)

_PAGE_LINK = re.compile(r"\[([^\]]+)\]\((?!https?://)[^)]*\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """One finding's section."""

    code: str
    title: str
    text: str
    """Markdown without the heading: severity, meaning, example, cause, cure, sources.

    Links to other pages of the documentation are plain words.
    """


@cache
def explanations() -> dict[str, Explanation]:
    """Every section by code, in the order of the codes."""
    page = files("precheck.facts").joinpath("findings.md").read_text(encoding="utf-8")
    _, *parts = _HEADING.split(page)
    sections = [
        Explanation(code=code, title=title, text=_PAGE_LINK.sub(r"\1", text).strip())
        for code, title, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    ]
    return {section.code: section for section in sorted(sections, key=attrgetter("code"))}


def explanation(code: str) -> Explanation:
    """What a code means; case does not matter.

    Raises:
        UsageError: there is no such code.
    """
    section = explanations().get(code.upper())
    if section is None:
        family = [other for other in explanations() if other[:3] == code.upper()[:3]]
        raise UsageError(
            f"unknown finding code: {code!r} (expected {', '.join(family) or 'PC101, PC201 ...'})",
            hint="precheck explain lists them",
        )
    return section
