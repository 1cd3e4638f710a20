"""Versions outside the declared range are refused before they fail somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
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


@pytest.mark.parametrize(
    "raised",
    ["RuntimeError('operator torchvision::nms does not exist')", "AttributeError('extension')",
     "ImportError('libcudart.so.12: cannot open shared object file')"],
)  # fmt: skip
@pytest.mark.parametrize("arguments", [["scan", "demo:qwen2-eager", "--quick"],
                                       ["demo", "qwen2-eager", "-o", "saved"]])  # fmt: skip
def test_a_library_that_breaks_the_import_is_named(
    raised: str, arguments: list[str], tmp_path: Path
) -> None:
    """A torchvision for another torch: transformers imports it, and then nothing of it can be."""
    package, installed = tmp_path / "torchvision", tmp_path / "torchvision-0.99.0.dist-info"
    for folder in (package, installed):
        folder.mkdir()
    (package / "__init__.py").write_text(f"raise {raised}")
    (installed / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.99.0\n"
    )
    ended = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-m", "precheck", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT)))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == ExitCode.INCOMPLETE, ended.stderr
    assert "error: torchvision is installed but cannot be imported: " in ended.stderr
    assert "hint: pip install --force-reinstall torchvision" in ended.stderr
    assert ended.stdout == ""
    assert not (tmp_path / "saved").exists()


def test_python_without_docstrings_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    """Transformers reads them; what needs no transformers works."""
    environment = os.environ | {"PYTHONOPTIMIZE": "2", "PYTHONPATH": str(ROOT)}
    code = "from precheck.cli import main; main()"

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603  our own program
            [sys.executable, "-c", code, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    ended = run("fix", "demo:qwen2-eager", "-o", "fixed")
    assert ended.returncode == ExitCode.INCOMPLETE
    assert "error: Python without docstrings" in ended.stderr
    ended = run("report", str(ROOT / "tests" / "data" / "reports" / "earlier-1.json"))
    assert (ended.returncode, ended.stderr) == (0, "")
