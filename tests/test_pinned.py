"""What is marked ``pinned`` is skipped with other libraries than the tested ones, and only that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import conftest, pinned

if TYPE_CHECKING:
    from collections.abc import Mapping

pytest_plugins = ["pytester"]

FUNCTIONS = """
    import pytest

    def test_plain(): ...

    @pytest.mark.pinned("its lines")
    def test_marked(): ...

    @pytest.mark.parametrize(
        "name", ["opt", pytest.param("t5", marks=pytest.mark.pinned("its attention"))]
    )
    def test_each(name): ...
"""
MODULE = """
    import pytest

    pytestmark = pytest.mark.pinned("its tables")

    def test_whole(): ...
"""
MARKED = {"test_marked": "its lines", "test_each[t5]": "its attention", "test_whole": "its tables"}


def items_of(pytester: pytest.Pytester, **sources: str) -> list[pytest.Item]:
    pytester.makeini("[pytest]\nmarkers = pinned: tells what the libraries hold")
    pytester.makepyfile(**sources)
    items, _ = pytester.inline_genitems()
    return items


@pytest.fixture(autouse=True)
def without_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading those that are installed again takes seconds."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


@pytest.fixture
def items(pytester: pytest.Pytester) -> list[pytest.Item]:
    return items_of(pytester, test_functions=FUNCTIONS, test_module=MODULE)


def reasons(items: list[pytest.Item]) -> dict[str, str]:
    """Why each of the tests that are skipped is, by its name."""
    skips = {item.name: item.get_closest_marker("skip") for item in items}
    return {name: skip.kwargs["reason"] for name, skip in skips.items() if skip is not None}


def collected(
    items: list[pytest.Item], libraries: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, str]:
    monkeypatch.setattr(pinned, "version", libraries.__getitem__)
    conftest.pytest_collection_modifyitems(items)
    return reasons(items)


def test_nothing_is_skipped_with_the_tested_libraries(
    items: list[pytest.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(items) == 5
    built_for = {name: f"{release}+cpu" for name, release in pinned.tested().items()}
    assert collected(items, built_for, monkeypatch) == {}


@pytest.mark.parametrize("library", pinned.LIBRARIES)
def test_what_is_marked_is_skipped_with_any_other_and_says_why(
    library: str, items: list[pytest.Item], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {**pinned.tested(), library: "0.1"}
    skipped = collected(items, others, monkeypatch)
    assert skipped.keys() == MARKED.keys()
    for name, reason in skipped.items():
        assert reason.startswith(f"{MARKED[name]}; ")
        assert f"{library} 0.1" in reason


def test_a_mark_without_a_reason_is_refused(pytester: pytest.Pytester) -> None:
    bare = "import pytest\n@pytest.mark.pinned\ndef test_marked(): ..."
    items = items_of(pytester, test_bare=bare)
    with pytest.raises(ValueError, match="not enough values"):
        pinned.skip_pinned(items, libraries={})
