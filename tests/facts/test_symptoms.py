"""What people see leads to commands that exist and findings that are explained."""

from __future__ import annotations

import shlex
from itertools import combinations

import pytest
import typer

from precheck import cli
from precheck.facts.findings import explanations
from precheck.facts.symptoms import Symptom, close_symptoms, find_symptom, table

ROWS = table().symptom


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ("!!!!", "!!!!"),
        ("!!!!!!!!!!!!!!!!", "!!!!"),
        ("'!!!!'", "!!!!"),
        ("<pad>", "<pad>, or empty answers"),
        ("random multilingual text", "random multilingual text that never stops"),
        ("Silence", "silence, or noise instead of speech"),
        ("null  embeddings", "null embeddings, or NaN scores of a reranker"),
        ("0 % acceptance", "0 % acceptance of a draft"),
        ("0% acceptance", "0 % acceptance of a draft"),
        ("works for chat, fails for maths", "works for chat, fails for maths"),
    ],
)
def test_what_people_see_is_found(seen: str, name: str) -> None:
    found = find_symptom(seen)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("code", ["PC301", "301", "overflow", "padding mask", ""])
def test_other_words_are_no_symptom(code: str) -> None:
    assert find_symptom(code) is None


@pytest.mark.parametrize(
    ("seen", "name"),
    [
        ("null embedings", "null embeddings, or NaN scores of a reranker"),
        ("embeddings null", "null embeddings, or NaN scores of a reranker"),
        ("random multi-lingual text", "random multilingual text that never stops"),
        ("zero aceptance", "0 % acceptance of a draft"),
    ],
)
def test_what_is_misspelt_is_near(seen: str, name: str) -> None:
    assert close_symptoms(seen)[0].name == name
    assert close_symptoms("xyzzy") == ()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_its_commands_and_findings_exist(row: Symptom) -> None:
    assert set(row.codes) <= set(explanations())
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for command in row.first:
        program, name, *arguments = shlex.split(command)
        assert program == "precheck"
        flags = {flag for option in commands[name].params for flag in option.opts}
        assert {each for each in arguments if each.startswith("-")} <= flags


def test_no_words_mean_two_symptoms() -> None:
    for one, other in combinations(ROWS, 2):
        assert not {one.name, *one.words} & {other.name, *other.words}
