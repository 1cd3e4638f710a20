"""The limits of rooms, modules and functions are enforced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.house import (
    MOST_FUNCTION_LINES,
    MOST_MODULE_LINES,
    MOST_MODULES,
    PACKAGE,
    too_large,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_in_the_package_is_too_large() -> None:
    assert list(too_large(PACKAGE)) == []


def test_a_crowded_folder_is_named(tmp_path: Path) -> None:
    for number in range(MOST_MODULES + 1):
        (tmp_path / f"module_{number}.py").touch()
    assert list(too_large(tmp_path)) == ["21 modules in . (at most 20)"]
    (tmp_path / "module_0.py").unlink()
    (tmp_path / "__init__.py").touch()
    assert list(too_large(tmp_path)) == []


def test_a_long_module_is_named(tmp_path: Path) -> None:
    (tmp_path / "long.py").write_text("x = 1\n" * MOST_MODULE_LINES)
    assert list(too_large(tmp_path)) == []
    (tmp_path / "long.py").write_text("x = 1\n" * (MOST_MODULE_LINES + 1))
    assert list(too_large(tmp_path)) == ["351 lines in module long.py (at most 350)"]


def test_a_long_function_is_named_and_its_docstring_costs_nothing(tmp_path: Path) -> None:
    head = "def function(\n    argument,\n):\n" + '    """A\n\n    docstring."""\n'
    file = tmp_path / "functions.py"
    file.write_text(head + "    x = 1\n" * MOST_FUNCTION_LINES)
    assert list(too_large(tmp_path)) == []
    file.write_text(head + "    x = 1\n" * (MOST_FUNCTION_LINES + 1))
    assert list(too_large(tmp_path)) == [
        "61 lines in the body of functions.py:1 function (at most 60)"
    ]
