"""Which GGUF file a user means: a path, a folder that holds nothing else, or ``repo:file``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.checkpoint import hub
from precheck.errors import CheckpointAccessError, UsageError
from precheck.records.progress import Announcement
from precheck.records.quantities import num_bytes

if TYPE_CHECKING:
    from precheck.records.progress import Observer

SUFFIX = ".gguf"
_IN_REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+):(?P<file>[^:]+\.gguf)", re.ASCII)
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufLocation:
    """A GGUF file on disk."""

    file: Path
    commit: str | None = None
    """Of the repository that it was downloaded from."""


def find_gguf(model: str, *, revision: str | None, observe: Observer) -> GgufLocation | None:
    """The file that is meant, downloaded if necessary; None if it is no GGUF file.

    Args:
        model: what the user named.
        revision: branch, tag or commit of a Hub repository.
        observe: called with the size of a download before it starts.

    Raises:
        CheckpointAccessError: no such file, or several in a folder.
        UsageError: a revision of a local file.
    """
    try:
        path = Path(model).expanduser()
        is_file, is_folder = path.is_file(), bool(model) and path.is_dir()
    except (OSError, RuntimeError, ValueError):  # source.py says what is wrong with it
        return None
    file = path if is_file and path.suffix == SUFFIX else None
    if is_folder:
        file = _only_file(path, where=model)
    if file is not None and revision is not None:
        raise UsageError(
            f"revision {revision!r} of a local file: {model!r} (only the Hub has revisions)",
            hint="omit --revision, or pass REPOSITORY:FILE.gguf",
        )
    if file is not None:
        return GgufLocation(file=file)
    named = None if is_file or is_folder else _IN_REPOSITORY.fullmatch(model)
    if named is None:
        return None
    return _downloaded(named["repo"], named["file"], revision=revision, observe=observe)


def _only_file(folder: Path, *, where: str) -> Path | None:
    """The GGUF file of a folder without a config; None if there is none."""
    try:
        files = sorted(folder.glob(f"*{SUFFIX}"))
        if not files or (folder / "config.json").exists():
            return None
    except OSError:
        return None
    if len(files) > 1:
        raise CheckpointAccessError(
            f"{len(files)} GGUF files in {where!r} (expected one)",
            hint=f"name the file: {_listed([str(file) for file in files])}",
        )
    return files[0]


def _downloaded(repo: str, name: str, *, revision: str | None, observe: Observer) -> GgufLocation:
    sizes = hub.list_sizes(repo, revision=revision)
    if sizes is not None and name not in sizes:
        there = [f"{repo}:{other}" for other in sorted(sizes) if other.endswith(SUFFIX)]
        raise CheckpointAccessError(
            f"no file {name!r} in Hub repository {repo!r}",
            hint=f"name one of its files: {_listed(there)}"
            if there
            else "it has no GGUF file; omit the file to scan its checkpoint",
        )
    size = "" if sizes is None else f", {num_bytes(sizes[name])}"
    observe(Announcement(text=f"fetching {name} of {repo}{size}, unless it is in the cache"))
    file, commit = hub.fetch_file(repo, name, revision=revision)
    return GgufLocation(file=file, commit=commit)


def _listed(names: list[str]) -> str:
    shown = " or ".join(repr(name) for name in names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
