"""Which other files of a checkpoint are copied when its weights are written again."""

from __future__ import annotations

import json
import os
import shutil
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from precheck.checkpoint.config import CONFIG
from precheck.checkpoint.formats import SAFETENSORS, is_foreign

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WEIGHTS = (".safetensors", ".index.json", ".gguf", ".ggml", ".h5", ".msgpack", ".ot")
_OTHER_WEIGHTS = (".onnx", ".onnx_data", ".tflite", ".distcp")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_RESULTS = ("precheck-fix.json", "precheck-recipe.json")
"""Of earlier fixes: a folder that holds one is no part of the checkpoint."""
_WRITTEN = (CONFIG, *SAFETENSORS, *_RESULTS)
_APPENDED_TO = "README.md"
_HIDDEN_BUT_PART = ".gitattributes"


@dataclass(frozen=True, slots=True)
class CarriedFile:
    """A file that goes with the checkpoint."""

    name: str
    """Relative to the folder, with ``/``."""
    file: Path
    """Where it is read from; no link."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Carried:
    """What goes with a checkpoint, and what does not."""

    files: tuple[CarriedFile, ...]
    left_out: tuple[tuple[str, str], ...]
    """Name and reason of what a person may miss; other weights of the model are not among them."""

    @property
    def size_bytes(self) -> int:
        """What all of them take, holes in sparse files included: they are written out."""
        return sum(each.size_bytes for each in self.files)


def find_carried(folder: Path) -> Carried:
    """Every file in a checkpoint's folder and the folders in it, but weights and hidden files.

    Links are followed inside the folder and into the cache of the Hub, nowhere else.
    """
    root = folder.resolve()
    modules = _weights_of_modules(root)
    files: list[CarriedFile] = []
    left_out: list[tuple[str, str]] = []
    for path in _walk(root):
        name = path.relative_to(root).as_posix()
        reason: str | None
        if path.suffix == ".safetensors" and name.rpartition("/")[0] in modules:
            reason = None
        else:
            reason = _reason_to_leave(name)
        if reason is None:
            found = _readable(path, root)
            if isinstance(found, CarriedFile):
                files.append(found)
                continue
            reason = found
        if reason:
            left_out.append((name, reason))
    return Carried(files=tuple(files), left_out=tuple(left_out))


def copy_carried(carried: Sequence[CarriedFile], into: Path) -> None:
    """Copies files with their permissions; the owner may read and write each.

    Raises:
        OSError: one cannot be read or written.
    """
    for each in carried:
        target = into / each.name
        target.parent.mkdir(parents=True, exist_ok=True)
        # it was no link and no pipe a moment ago
        opened = os.open(each.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(opened, "rb") as source:
            mode = os.fstat(opened).st_mode & 0o777 | 0o600
            created = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with os.fdopen(created, "wb") as copy:
                shutil.copyfileobj(source, copy, length=1 << 20)


def _walk(root: Path) -> Iterator[Path]:
    """Files, and links to folders, but for hidden ones and results of earlier fixes."""
    for path, folders, names in os.walk(root):
        here = Path(path)
        if here != root and any(result in names for result in _RESULTS):
            folders.clear()
            continue
        if here == root:  # these names are taken
            names[:] = [name for name in names if name not in _WRITTEN]
            folders[:] = [name for name in folders if name not in (*_WRITTEN, _APPENDED_TO)]
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(
            name for name in folders if not name.startswith((".", "__")) and name not in links
        )
        for name in sorted((*names, *links)):
            if not name.startswith(".") or name == _HIDDEN_BUT_PART:
                yield here / name


def _reason_to_leave(name: str) -> str | None:
    """Why a file of this name is not copied: empty if nobody misses it, None if it is copied."""
    lower = name.lower()
    if lower.endswith(_PICKLES):
        return "" if "/" not in name and lower.endswith(".bin") else "weights or a pickle"
    return "" if lower.endswith(_WEIGHTS + _OTHER_WEIGHTS) or is_foreign(name) else None


def _readable(path: Path, root: Path) -> CarriedFile | str:
    """The file, or why it is not copied."""
    try:
        real = path.resolve(strict=True)
        status = real.lstat()
    except (OSError, RuntimeError) as error:
        return "a broken link" if path.is_symlink() else str(error)
    if path.is_symlink() and not any(map(real.is_relative_to, (root, *_blobs(root)))):
        return "a link to outside the checkpoint"
    if path.is_symlink() and real.is_relative_to(root) and _stays(real.relative_to(root)):
        return "a link to something that is not copied"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    if not os.access(real, os.R_OK):
        return "not readable"
    name = path.relative_to(root).as_posix()
    return CarriedFile(name=name, file=real, size_bytes=status.st_size)


def _stays(path: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in path.parts)
    return is_hidden or _reason_to_leave(path.as_posix()) is not None


def _blobs(root: Path) -> Iterator[Path]:
    """Where the Hub's cache keeps the files that a snapshot links to."""
    if root.parent.name == "snapshots":
        yield root.parent.parent / "blobs"


def _weights_of_modules(root: Path) -> frozenset[str]:
    """Folders of a sentence-transformers pipeline: their weights are no copy of the model's."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        modules = json.loads((root / "modules.json").read_bytes())
        return frozenset(
            PurePosixPath(module["path"]).as_posix() for module in modules if module["path"]
        )
    return frozenset()
