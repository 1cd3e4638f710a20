"""The server reads other tokens than the checkpoint's tokenizer makes (PC801 to PC803)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.quantities import counted
from precheck.served.findings.written import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.finding import Finding
    from precheck.served.evidence import Evidence
    from precheck.served.tokenization import ReadText


def other_tokens(evidence: Evidence) -> Iterator[Finding]:
    """Texts of which the server makes other tokens."""
    differing = [
        one for one in evidence.read_texts if not (one.is_same or one.is_chat or is_cut(one))
    ]
    if not differing:
        return
    first = differing[0]
    names = tuple(dict.fromkeys(one.name for one in differing))
    yield finding(
        evidence,
        "PC801",
        "the server reads other tokens than the checkpoint's tokenizer makes:"
        f" {_what(first, evidence)}. So for {counted(len(names), 'prompt')}.{_compared(evidence)}",
        advice="Compare tokenizer_config.json with the engine's settings, first what is said of"
        " BOS.",
        probes=names,
    )


def other_template(evidence: Evidence) -> Iterator[Finding]:
    """A chat that the server makes other tokens of."""
    for one in evidence.read_texts:
        if one.is_chat and not one.is_same:
            yield finding(
                evidence,
                "PC802",
                "the server's chat template is not the checkpoint's:"
                f" {_what(one, evidence)}. Answers of its chats are those to another prompt.",
                advice="Give the engine the template of the checkpoint (chat_template.jinja, or"
                " tokenizer_config.json).",
                probes=(one.name,),
            )
            return


def shortened(evidence: Evidence) -> Iterator[Finding]:
    """Prompts that the server reads a part of."""
    for one in evidence.read_texts:
        if is_cut(one):
            yield finding(
                evidence,
                "PC803",
                f"the server reads {_length(one):,} of the {len(one.expected):,} tokens of a"
                " prompt, and says nothing of it. What stands before is not part of the answer.",
                advice="Give the engine a longer context.",
                probes=(one.name,),
            )
            return


def is_cut(read: ReadText) -> bool:
    """Whether several tokens are missing; one is a BOS."""
    return not read.is_chat and _length(read) < len(read.expected) - 1


def _length(read: ReadText) -> int:
    if read.ids is not None:
        return len(read.ids)
    return len(read.expected) if read.num_tokens is None else read.num_tokens


def _what(read: ReadText, evidence: Evidence) -> str:
    """How they differ, in words."""
    bos, expected, more = evidence.tokens.bos, read.expected, _length(read) - len(read.expected)
    begins_with_bos = bool(expected) and expected[0] == bos
    if bos is not None and more == 1 and read.ids in {None, (bos, *expected)}:
        return "BOS stands twice before it" if begins_with_bos else "a BOS stands before it"
    if begins_with_bos and more == -1 and read.ids in {None, expected[1:]}:
        return "there is no BOS before it"
    if read.ids is None:
        return f"{_length(read):,} tokens instead of {len(expected):,}"
    pairs = enumerate(zip(read.ids, expected, strict=False))
    first = next(
        (i for i, (one, other) in pairs if one != other), min(len(read.ids), len(expected))
    )
    return (
        f"token {first} is {_shown(read.ids, first, evidence)} instead of"
        f" {_shown(expected, first, evidence)}, {len(read.ids):,} instead of {len(expected):,} in"
        " all"
    )


def _shown(ids: tuple[int, ...], index: int, evidence: Evidence) -> str:
    if index >= len(ids):
        return "nothing"
    return f"{ids[index]} ({evidence.tokens.shown(ids[index])!r})"


def _compared(evidence: Evidence) -> str:
    """Whether the numbers confirm it."""
    same = {one.name: one.is_same for one in evidence.read_texts}
    asked = [
        answer
        for answer in evidence.answers
        if not same.get(answer.name, True) and evidence.reading(answer) is not None
    ]
    if not asked or not evidence.fits:
        return ""
    return " With the tokens as it reads them, a measured configuration explains its answers."
