"""The script for a rented machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from precheck.saved import read_report

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "docs" / "rented_gpu.py"


def metadata(script: str) -> dict[str, Any]:
    """What a script says of itself, read as PEP 723 does."""
    pattern = r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    (found,) = re.finditer(pattern, script)
    return tomllib.loads("".join(line[2:] for line in found["content"].splitlines(keepends=True)))


def test_it_names_this_repository_and_its_python() -> None:
    inside = metadata(SCRIPT.read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert inside["requires-python"] == project["requires-python"]
    (name,) = inside["dependencies"]
    assert name == project["name"]
    assert (SCRIPT.parent / inside["tool"]["uv"]["sources"][name]["path"]).resolve() == ROOT


@pytest.mark.parametrize(("required", "code"), [("float16+sdpa", 0), ("float16+eager", 1)])
def test_it_tries_the_machine_and_scans_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, required: str, code: int
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ran = subprocess.run(  # noqa: S603  our own script
        [sys.executable, SCRIPT, "demo:qwen2-eager", "--quick", "--require", required],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == code, ran.stderr
    trusted = ran.stdout.index("Verdicts can be trusted here.")
    assert "float16 + eager" in ran.stdout[trusted:]
    assert {each.name for each in tmp_path.iterdir()} == {"report.json", "report.md"}
    assert read_report(tmp_path / "report.json").model.id == "demo:qwen2-eager"


def test_a_machine_that_cannot_be_trusted_scans_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precheck").mkdir()
    (tmp_path / "precheck" / "__main__.py").write_text(
        "import sys\nprint(sys.argv[1:])\nsys.exit(1)\n", encoding="utf-8"
    )
    (tmp_path / "precheck" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ran = subprocess.run(  # noqa: S603  our own script
        [sys.executable, SCRIPT, "model"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout) == (1, "['env', '--selftest']\n")
