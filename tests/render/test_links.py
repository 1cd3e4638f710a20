"""Text from outside becomes no link in Markdown, by GitHub's own rules for bare text."""

from __future__ import annotations

import re

import pytest

from precheck.render.parts import markdown

GITHUB_LINKS = re.compile(
    r"(?:https?|ftp)://|www\.\w|(?:mailto|xmpp):|[\w.+-]+@[\w-]|\bGH-\d|#\d|\bCVE-\d|\bGHSA-\w"
    r"|\b(?=[a-f]*\d)(?=\d*[a-f])[\da-f]{7,40}\b",
    re.IGNORECASE,
)
"""**Source**: GitHub Flavored Markdown 6.9, and "Autolinked references and URLs" in its docs."""


@pytest.mark.parametrize(
    "text",
    [
        "see http://evil.example/x and HTTPS://EVIL.example",
        "ftp://evil.example",
        "(www.evil.example), WWW.evil.example, _www.evil.example",
        "GH-2 and gh-31337, owner/name#3, #4",
        "someone@evil.example, mailto:someone@evil.example, xmpp:a@b.example/c",
        "CVE-2024-3094, GHSA-jq35-85cj-fj4p",
        "commit 16c999e8c71134401a78d4d46435517b2271d6ac or 16c999e, a/b@16c999e",
    ],
)
def test_nothing_is_left_to_link(text: str) -> None:
    assert GITHUB_LINKS.search(text)
    for written in (markdown.prose(text), markdown.details(text, "")):
        assert not GITHUB_LINKS.search(written), written
    shown = markdown.prose(text).replace("<!-- -->", "").replace("\\", "")
    assert shown == text


def test_ordinary_words_stay_whole() -> None:
    text = "high-end, 1234567 elements, defaced, wwwhat, 0x7f, 65504.0"
    assert markdown.prose(text) == text
