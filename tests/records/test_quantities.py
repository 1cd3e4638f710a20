"""Values as text."""

from __future__ import annotations

import ast

from hypothesis import given
from hypothesis import strategies as st

from precheck.records.quantities import python_string


@given(st.text(alphabet=st.characters()))
def test_a_string_of_python_is_the_text(text: str) -> None:
    written = python_string(text)
    assert ast.literal_eval(written) == text
    assert written.isprintable()


def test_an_emoji_is_one_character() -> None:
    assert python_string("./🎉/\udcff") == '"./🎉/\\udcff"'
