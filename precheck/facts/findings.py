"""What is known of each finding: the sections of ``docs/findings.md``, which is in the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from operator import attrgetter

from precheck.errors import UsageError, did_you_mean, unknown
from precheck.facts.symptoms import close_symptoms

_HEADING = re.compile(r"^## (PC\d{3}): (.+)$", re.MULTILINE)

_CODE = re.compile(r"PC\d*")

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


def find_explanations(text: str) -> tuple[Explanation, ...]:
    """The finding with this code (``PC301``, ``301``), or those that mention a word.

    >>> [found.code for found in find_explanations("301")]
    ['PC301']

    Raises:
        UsageError: there is none.
    """
    code = f"PC{text.upper().removeprefix('PC')}"
    if code in explanations():
        return (explanations()[code],)
    if _CODE.fullmatch(code):
        family = [other for other in explanations() if other[:3] == code[:3]]
        codes = family or ["PC101", "PC201 ..."]
        raise unknown("finding code", text, codes, hint="precheck explain lists them")
    word, known = text.casefold(), explanations().values()
    found = [each for each in known if word in each.title.casefold()]
    found = found or [each for each in known if word in each.text.casefold()]
    if not found:
        close = (repr(symptom.name) for symptom in close_symptoms(text))
        raise UsageError(
            f"no finding mentions {text!r} (expected a code, a word, or what you see)",
            hint=f"{did_you_mean(close)}precheck explain lists them",
        )
    return tuple(found)
