"""How large the package's rooms, modules and functions are, and whether one is too large.

``make check`` prints the table; ``tests/test_house.py`` shows that each limit is enforced. The one
on functions is on their bodies: parameters stand a line each, and documenting them costs nothing.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGE = Path(__file__).parents[1] / "precheck"

MOST_MODULES = 20
"""In one folder, ``__init__.py`` not counted."""
MOST_MODULE_LINES = 350
MOST_FUNCTION_LINES = 60


class Size(NamedTuple):
    """Lines, and of what."""

    lines: int
    where: str


def module_sizes(package: Path) -> list[Size]:
    """Lines of every module."""
    return [
        Size(len(path.read_text(encoding="utf-8").splitlines()), str(path.relative_to(package)))
        for path in sorted(package.rglob("*.py"))
    ]


def function_sizes(package: Path) -> list[Size]:
    """Lines of every function and method, from ``def`` to the end."""
    return [
        Size((node.end_lineno or node.lineno) - node.lineno + 1, where)
        for where, node in _functions(package)
    ]


def body_sizes(package: Path) -> list[Size]:
    """Lines of every function and method from the first statement behind its docstring."""
    return [
        Size((node.end_lineno or node.lineno) - _first_line(node) + 1, where)
        for where, node in _functions(package)
    ]


def _functions(package: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in sorted(package.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(package)}:{node.lineno} {node.name}", node


def _first_line(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(node) is None:
        return node.body[0].lineno
    return (node.body[0].end_lineno or node.body[0].lineno) + 1


def room_sizes(package: Path) -> list[Size]:
    """Modules in every folder."""
    modules = (path for path in package.rglob("*.py") if path.name != "__init__.py")
    counts = Counter(str(path.parent.relative_to(package)) for path in modules)
    return [Size(count, folder) for folder, count in sorted(counts.items())]


def too_large(package: Path) -> Iterator[str]:
    """A line for everything beyond its limit."""
    for what, sizes, most in (
        ("modules in", room_sizes(package), MOST_MODULES),
        ("lines in module", module_sizes(package), MOST_MODULE_LINES),
        ("lines in the body of", body_sizes(package), MOST_FUNCTION_LINES),
    ):
        for size in sizes:
            if size.lines > most:
                yield f"{size.lines} {what} {size.where} (at most {most})"


def _row(what: str, sizes: Sequence[Size]) -> str:
    lines = sorted(size.lines for size in sizes)
    percentile = lines[int(0.95 * len(lines))]
    median = statistics.median_low(lines)
    return f"{what:<22}{len(lines):>7}{median:>9}{percentile:>18}{lines[-1]:>9}"


def main() -> None:
    """Prints the table, and what is too large."""
    print(f"{'':<22}{'count':>7}{'median':>9}{'95th percentile':>18}{'largest':>9}")  # noqa: T201
    for what, sizes in (
        ("modules in a folder", room_sizes(PACKAGE)),
        ("lines in a module", module_sizes(PACKAGE)),
        ("lines in a function", function_sizes(PACKAGE)),
        ("of these in its body", body_sizes(PACKAGE)),
    ):
        print(_row(what, sizes))  # noqa: T201
    found = list(too_large(PACKAGE))
    if found:
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
