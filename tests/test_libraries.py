"""Versions outside the declared range are refused before they fail somewhere."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from precheck.errors import ExitCode, LibraryVersionError
from precheck.libraries import MEASURING, check_libraries

ROOT = Path(__file__).parents[1]


def test_what_is_installed_is_in_the_range() -> None:
    check_libraries()


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ("4.57.6", "transformers 4.57.6 is installed (expected >=5.10)"),
        ("5.9.0", "transformers 5.9.0 is installed (expected >=5.10)"),
        (None, "transformers is not installed (expected >=5.10)"),
    ],
)
def test_what_is_outside_is_named_with_the_command_that_mends_it(
    found: str | None, says: str
) -> None:
    def installed(_name: str) -> str:
        if found is None:
            raise PackageNotFoundError
        return found

    with pytest.raises(LibraryVersionError) as refused:
        check_libraries(required=["transformers>=5.10"], installed=installed)
    assert refused.value.message == says
    assert refused.value.hint == 'pip install "transformers>=5.10"'
    assert refused.value.exit_code is ExitCode.INCOMPLETE


@pytest.mark.parametrize("found", ["5.10.0", "5.30.1", "6.0.0.dev0", "5.11.0+local"])
def test_what_is_inside_passes(found: str) -> None:
    check_libraries(required=["transformers>=5.10"], installed=lambda _: found)


def test_only_libraries_that_measure_are_looked_at() -> None:
    check_libraries(required=["rich>=13.7"], installed=lambda _: "1.0")


def test_the_range_of_each_of_them_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {each.split(">=")[0].replace("_", "-") for each in project["dependencies"]}
    assert declared >= MEASURING
