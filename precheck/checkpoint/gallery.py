"""The built-in models: tiny real checkpoints, each with one known fault, built where needed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from precheck.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryModel:
    """A built-in model: what it shows, and how it is made."""

    title: str
    story: str
    version: int
    """Goes up whenever ``build`` writes something else, so that no cache is stale."""
    build: Callable[[Path], None]
    """Writes the checkpoint into an empty folder."""


def _build_qwen2_eager(folder: Path) -> None:
    # Listing the gallery must not import torch.
    from precheck.checkpoint.gallery_qwen2 import build  # noqa: PLC0415

    build(folder)


GALLERY: Mapping[str, GalleryModel] = MappingProxyType(
    {
        "qwen2-eager": GalleryModel(
            title="Qwen2 whose attention scores leave float16 in eager attention",
            story=(
                "Like Qwen2-7B: a large bias on queries and keys lifts the raw scores of one "
                "decoder layer to about 230,000. In float16 eager attention makes NaN of them "
                "and every answer is '!!!!'; in bfloat16 it only rounds them and the model "
                "quietly gets worse. sdpa scales before it stores and is right in both."
            ),
            version=1,
            build=_build_qwen2_eager,
        ),
    }
)
"""Built-in models by the name after ``demo:``."""


def saved(name: str) -> Path:
    """The folder of a built-in model, built now unless the user's cache has it.

    Raises:
        UsageError: no built-in model of that name.
    """
    model = GALLERY.get(name)
    if model is None:
        raise UsageError(
            f"no built-in model {name!r} (expected {' or '.join(GALLERY)})",
            hint="precheck demo",
        )
    folder = _cache_folder() / f"{name}-{model.version}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError:
        return _build_for_this_process(model)
    try:
        model.build(unfinished)
        return _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _cache_folder() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    cache = configured if configured.is_absolute() else Path("~/.cache").expanduser()
    return cache / "precheck" / "gallery"


def _build_for_this_process(model: GalleryModel) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="precheck-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model.build(folder)
    return folder


def _move(unfinished: Path, folder: Path) -> Path:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process was faster; its copy is as good.
        if not folder.is_dir():
            raise
    return folder
