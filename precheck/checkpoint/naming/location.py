"""Where what the user names is: a local folder, a built-in model, or a snapshot of the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from precheck.checkpoint import gallery, hub
from precheck.checkpoint.config import CONFIG, read_config, read_json_object
from precheck.checkpoint.formats import refuse_foreign_format
from precheck.errors import (
    CheckpointAccessError,
    UnsupportedModelError,
    UsageError,
    did_you_mean,
)

_DEMO = "demo:"

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
"""``owner/name``, or the bare name of an old repository."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A checkpoint's config and tokenizer; its weights may be anywhere."""

    id: str
    """As the user gave it."""
    folder: Path
    revision: str | None
    """Commit on the Hub; None for a local folder."""
    trust_remote_code: bool
    gguf: ClassVar[None] = None


def open_description(
    model: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> Description:
    """The small files of a checkpoint; no weight file is opened, or downloaded.

    Raises:
        CheckpointAccessError: it does not exist, has no config, or access is refused.
        CheckpointCorruptError: its config is broken.
        UsageError: a revision of a local folder.
    """
    model, revision = hub.from_url(model, revision)
    location = locate(model, revision=revision, with_code=trust_remote_code, with_tokenizer=True)
    read_config_at(location, where=model)
    return Description(
        id=model,
        folder=location.folder,
        revision=None if location.snapshot is None else location.snapshot.commit,
        trust_remote_code=trust_remote_code,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where a checkpoint's files are, or will be."""

    folder: Path
    names: frozenset[str]
    """Files of the checkpoint, relative to the folder; on the Hub also those not downloaded yet."""
    snapshot: hub.Snapshot | None = None


def locate(model: str, *, revision: str | None, with_code: bool, with_tokenizer: bool) -> Location:
    """The files of a checkpoint; of one on the Hub only the small ones are fetched.

    Args:
        model: a folder, ``demo:NAME``, or a Hub id.
        revision: branch, tag or commit of a Hub repository.
        with_code: whether to fetch the repository's own Python files.
        with_tokenizer: whether to fetch its tokenizer.

    Raises:
        CheckpointAccessError: it does not exist, or access is refused.
        UnsupportedModelError: another format.
        UsageError: an unknown demo, or a revision of a local folder.
    """
    refuse = partial(refuse_foreign_format, where=model)
    folder = _find_folder(model)
    if folder is None:
        try:
            snapshot = hub.fetch_description(
                model,
                revision=revision,
                with_code=with_code,
                with_tokenizer=with_tokenizer,
                check=lambda names, fetch: refuse(
                    names, lambda name: read_json_object(fetch(name), where=model)
                ),
            )
        except CheckpointAccessError as error:
            hint = f"{_close_folder(model)}{error.hint}"
            raise CheckpointAccessError(error.message, hint=hint) from error.__cause__
        return Location(folder=snapshot.folder, names=frozenset(snapshot.sizes), snapshot=snapshot)
    if revision is not None:
        raise UsageError(
            f"revision {revision!r} of a local folder: {model!r} (only the Hub has revisions)",
            hint="omit --revision, or pass a Hub id",
        )
    names = frozenset(
        file.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for file in folder.glob(pattern)
        if file.is_file()
    )
    refuse(names, lambda name: read_json_object(folder / name, where=model))
    return Location(folder=folder, names=names)


def _find_folder(model: str) -> Path | None:
    if model.startswith(_DEMO):
        return gallery.saved(model.removeprefix(_DEMO))
    try:
        path = Path(model).expanduser()
        # An empty path would be the current folder.
        exists = bool(model) and path.exists()
        if exists and path.is_dir():
            return path
    except (OSError, RuntimeError) as error:
        raise CheckpointAccessError(
            f"cannot read folder {model!r}: {error}", hint="check the spelling and the permissions"
        ) from error
    if exists:
        refuse_foreign_format(
            [path.name], lambda _: read_json_object(path, where=model), where=model
        )
        raise UnsupportedModelError(
            f"not a folder: {model!r} (expected a folder with config.json, or a Hub id)",
            hint="pass the folder that contains it",
        )
    if not _HUB_ID.fullmatch(model):
        raise CheckpointAccessError(
            f"no such folder: {model!r}",
            hint=f"{_close_folder(model)}check the spelling, or pass a Hub id: owner/name",
        )
    return None


def _close_folder(model: str) -> str:
    """The start of a hint if a folder with nearly this name is next to where it should be."""
    path = Path(model)
    try:
        names = [other.name for other in path.expanduser().parent.iterdir() if other.is_dir()]
    except (OSError, RuntimeError, ValueError):
        return ""
    close = get_close_matches(path.name, names, n=1)
    return did_you_mean(repr(str(path.with_name(name))) for name in close)


def read_config_at(location: Location, *, where: str) -> dict[str, Any]:
    """The content of the config.

    Raises:
        CheckpointAccessError: there is none.
        CheckpointCorruptError: it is broken.
    """
    if CONFIG not in location.names:
        raise CheckpointAccessError(
            f"no {CONFIG} in {where!r}, so the model is unknown",
            hint=_nested_checkpoint(location.folder)
            or "save_pretrained(DIR) writes config.json and model.safetensors; scan that DIR",
        )
    return read_config(location.folder, where=where)


def _nested_checkpoint(folder: Path) -> str | None:
    # Training runs, and the Hub's own cache, keep checkpoints one or two folders further down.
    for pattern in (f"*/{CONFIG}", f"snapshots/*/{CONFIG}"):
        config = max(folder.glob(pattern), default=None)
        if config is not None:
            return f"did you mean the folder {str(config.parent)!r}?"
    return None
