"""A report without what is private: home folders, user names, tokens, texts of prompts."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from precheck.records.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_Replacement = tuple[re.Pattern[str], str]

_HOME = re.compile(r"(?:/home/|/Users/|\b[A-Za-z]:\\+Users\\+)([^/\\\s'\":;,]+)")
_ROOT = re.compile(r"(?<![\w/])/root(?=/|\b)")
_SECRETS = (
    re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    re.compile(r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    re.compile(r"\bgithub_pat_\w{20,}"),
    re.compile(r"\bglpat-[\w-]{16,}"),
    re.compile(r"\bsk-[\w-]{16,}"),
    re.compile(r"\bxox[abprs]-[\w-]{10,}"),
    re.compile(r"\bAKIA[0-9A-Z]{16}\b"),
    re.compile(r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+"),
    re.compile(r"(?i)(?<=bearer )\S{8,}"),
    re.compile(r"(?<=://)[^/\s@]+:[^/\s@]+(?=@)"),
)
"""Spellings of the tokens of the Hub, GitHub, GitLab, OpenAI, Slack, AWS, and of JWT and URLs."""

_SHORTEST_NAME = 3
_SHORTEST_PROMPT = 4
"""Shorter ones would be found inside ordinary words."""

PRIVATE_TEXT = "[redacted: generated after a private prompt]"


def redacted(
    report: Report,
    *,
    home: str | None = None,
    names: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> Report:
    """The same report without anything private.

    Args:
        report: any report; home folders and tokens are recognised by their form.
        home: the home folder, where it is not one of the usual ones.
        names: of users, and other words to redact.
        prompts: texts to redact wherever they are quoted.

    A model in a local folder is called by the folder's name. What was generated after one of the
    user's own prompts is redacted.
    """
    plain = report.to_dict()
    own = {probe.name for probe in report.probes if probe.is_own}
    for generation in (written for run in plain["runs"] for written in run["generations"]):
        if generation["probe"] in own and generation["text"] is not None:
            generation["text"] = PRIVATE_TEXT
    return Report.from_dict(
        cleaned(plain, model=report.model.id, home=home, names=names, prompts=prompts)
    )


def cleaned(
    plain: dict[str, Any],
    *,
    model: str,
    home: str | None,
    names: Sequence[str],
    prompts: Sequence[str],
) -> dict[str, Any]:
    """Plain data with everything private in its texts replaced.

    Args:
        plain: dicts, lists, strings and numbers.
        model: what the user called it; a local folder is called by its name alone.
        home: as of :func:`redacted`, and so are the others.
        names: of users.
        prompts: texts.
    """
    patterns = [
        *_literal(dict.fromkeys(_spellings(model), _folder_name(model))),
        *_literal(dict.fromkeys(_quoted(prompts), "[prompt]")),
        *_literal({home or "": "~"}),
        *((pattern, "~") for pattern in (_HOME, _ROOT)),
        *((pattern, "[token]") for pattern in _SECRETS),
    ]
    users = [(word, "[user]") for word in _whole_words({*names, *_users(plain)})]

    def clean(text: str) -> str:
        is_sentence = any(character in text for character in " /\\")  # else a word such as a dtype
        for pattern, replacement in (*patterns, *(users if is_sentence else ())):
            text = pattern.sub(lambda _, by=replacement: by, text)
        return text

    changed: dict[str, Any] = _mapped(plain, clean)
    return changed


def _literal(replacements: Mapping[str, str | None]) -> Iterator[_Replacement]:
    """Each text as a pattern, except empty ones and the root folder."""
    for text, replacement in replacements.items():
        if len(text) > 1 and replacement is not None:
            yield re.compile(re.escape(text)), replacement


def _quoted(prompts: Sequence[str]) -> Iterator[str]:
    """Prompts, the longest first."""
    for prompt in sorted(prompts, key=len, reverse=True):
        if len(prompt) >= _SHORTEST_PROMPT:
            yield from _spellings(prompt)


def _spellings(text: str) -> tuple[str, ...]:
    """As it is, and as a message or a line of code would quote it."""
    return (text, repr(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])


def _whole_words(names: set[str]) -> Iterator[re.Pattern[str]]:
    for name in sorted(names, key=len, reverse=True):
        if len(name) >= _SHORTEST_NAME:
            yield re.compile(rf"(?<![\w.]){re.escape(name)}(?!\w)")


def _folder_name(model: str) -> str | None:
    """``./name`` of a local folder; None for a Hub id or a built-in model."""
    is_windows = "\\" in model or bool(re.match(r"[A-Za-z]:", model))
    is_local = is_windows or model.startswith((".", "~", "/")) or model.count("/") > 1
    if not is_local or not any(character.isalnum() for character in model):
        return None
    path = PureWindowsPath(model) if is_windows else PurePosixPath(model)
    return f"./{path.name or 'model'}"


def _users(plain: object) -> Iterator[str]:
    for text in _strings(plain):
        yield from _HOME.findall(text)


def _strings(tree: object) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, dict):
        for branch in tree.values():
            yield from _strings(branch)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _strings(branch)


def _mapped(tree: Any, change: Callable[[str], str]) -> Any:  # noqa: ANN401  whatever JSON holds
    if isinstance(tree, str):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(branch, change) for key, branch in tree.items()}
    if isinstance(tree, list | tuple):
        return [_mapped(branch, change) for branch in tree]
    return tree
