"""Every mutation of ``make mutants`` still finds what it changes, and the tests that notice it."""

from __future__ import annotations

import re

import pytest

from tests.mutants import DETECTORS, ROOT, Mutation, rules


@pytest.mark.parametrize("mutation", [*DETECTORS, *rules()], ids=lambda mutation: mutation.name)
def test_a_mutation_finds_what_it_changes(mutation: Mutation) -> None:
    sound = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed, count = re.subn(mutation.old, mutation.new, sound, count=1)
    assert count == 1
    assert changed != sound
    for arguments in mutation.tests:
        paths = [word for word in arguments.split() if word.startswith("tests")]
        assert all((ROOT / path).exists() for path in paths), paths
