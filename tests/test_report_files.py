"""Report files: written by nobody else, through no link, with the permissions that they had."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from precheck.commands.terminal import write_whole
from precheck.errors import UsageError


def names_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names under which reports are written before they take their place."""
    names: list[str] = []
    plain = Path.replace

    def replace(path: Path, to: Path) -> Path:
        names.append(path.name)
        return plain(path, to)

    monkeypatch.setattr(Path, "replace", replace)
    for _ in range(3):
        write_whole(folder / "report.json", "{}")
    return names


def test_the_name_before_cannot_be_foreseen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = names_used(tmp_path, monkeypatch)
    assert len(set(names)) == 3
    assert all(len(name) > 30 and str(os.getpid()) not in name.split("-") for name in names)


def test_a_planted_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where somebody has guessed the name."""
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".precheck-guessed.tmp").symlink_to("mine.txt")
    with pytest.raises(UsageError, match="File exists"):
        write_whole(tmp_path / "report.json", "{}")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_permissions_are_kept(tmp_path: Path, mode: int) -> None:
    report = tmp_path / "report.json"
    report.touch()
    report.chmod(mode)
    write_whole(report, "{}")
    assert stat.S_IMODE(report.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_a_new_report_has_the_permissions_of_a_new_file(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_whole(tmp_path / "report.json", "{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o666 & ~umask


def test_reports_written_at_once_do_not_mix(tmp_path: Path) -> None:
    """As two containers with one process id on a volume."""
    texts = [letter * 200_000 for letter in "abcdefgh"]
    threads = [
        threading.Thread(target=write_whole, args=(tmp_path / "report.json", text))
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "report.json").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
