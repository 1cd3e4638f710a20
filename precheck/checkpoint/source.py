"""From what the user names to a checkpoint on disk that can be scanned."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precheck.checkpoint import gallery, hub
from precheck.checkpoint.config import (
    CONFIG,
    load_config,
    read_config,
    read_json_object,
    take_attention,
    without_quantization,
)
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.formats import find_weight_files, refuse_foreign_format
from precheck.checkpoint.gguf.contents import GgufContents, read_contents
from precheck.checkpoint.gguf.location import GgufLocation, find_gguf
from precheck.checkpoint.quantization import (
    GGUF,
    MODELOPT,
    Quantization,
    read_quantization,
    with_modelopt,
)
from precheck.checkpoint.remote.opening import open_remote
from precheck.checkpoint.weights import Headers, Weights, open_shard
from precheck.errors import (
    CheckpointAccessError,
    UnsupportedModelError,
    UsageError,
    did_you_mean,
)
from precheck.records.progress import Announcement, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import transformers

    from precheck.checkpoint.remote.files import RemoteFiles
    from precheck.checkpoint.shards import Shard
    from precheck.records.attention import Attention

_DEMO = "demo:"

_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?", re.ASCII)
"""``owner/name``, or the bare name of an old repository."""


class Access(Enum):
    """Where the weights of a repository are read; those of a folder are read there."""

    DOWNLOADED = auto()
    """In the cache, which they are downloaded to."""
    STREAMED = auto()
    """On the Hub, by byte range, unless the cache has them; nothing is stored."""
    DESCRIBED = auto()
    """As ``STREAMED``, and nothing is fetched that only a run needs, such as a tokenizer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint, its config read and the headers of its weights checked."""

    id: str
    """As the user gave it."""
    folder: Path
    revision: str | None
    """Commit on the Hub; None for a local folder."""
    config: transformers.PreTrainedConfig
    """Without the attention that it names, and without its ``quantization_config`` where
    ``open_weights`` decodes the tensors."""
    attention: Attention | None
    """The attention that it names, and that a plain ``from_pretrained`` uses."""
    trust_remote_code: bool
    allow_pickle: bool
    weight_files: tuple[Path, ...]
    """On disk, but for those that are ``remote``."""
    headers: Headers
    """What the weight files' headers said when the checkpoint was opened."""
    quantization: Quantization | None = None
    unread: frozenset[str] = frozenset()
    """Stored tensors that are left out: the second copies of tied ones."""
    gguf: GgufContents | None = None
    """The file that holds all of it, tokenizer included; what else is in its folder is not its."""
    remote: RemoteFiles | None = None
    """Weight files that are read on the Hub."""

    @property
    def is_decoded_by_transformers(self) -> bool:
        """Whether its weights are packed in a way that only transformers decodes, all at once."""
        return self.quantization is not None and not self.quantization.is_decoded_here

    def open_weights(self) -> Weights:
        """Its tensors by the names the model takes, decoded where they are quantised.

        Raises:
            CheckpointCorruptError: a broken shard, or tensors that contradict the config's
                quantisation.
        """
        if self.gguf is not None:
            return self.gguf.open_weights()
        weights = _opened(
            self.weight_files,
            self.quantization,
            allow_pickle=self.allow_pickle,
            remote=self.remote,
        )
        weights.leave_out(self.unread)
        return weights


def _opened(
    weight_files: tuple[Path, ...],
    quantization: Quantization | None,
    *,
    allow_pickle: bool,
    remote: RemoteFiles | None,
) -> Weights:
    opener: Callable[[Path], Shard] = open_shard if remote is None else remote.open_shard
    if quantization is not None and quantization.is_decoded_here:
        return DecodedWeights(
            weight_files, quantization, allow_pickle=allow_pickle, open_shard=opener
        )
    return Weights(weight_files, allow_pickle=allow_pickle, open_shard=opener)


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    access: Access = Access.DOWNLOADED,
    observe: Observer,
) -> Checkpoint:
    """The checkpoint behind a local folder, a Hub id or ``demo:NAME``, downloaded if necessary.

    Args:
        model: what to scan, also as its address on the Hub; a folder takes precedence over a
            repository of the same name.
        revision: branch, tag or commit of a Hub repository.
        trust_remote_code: whether Python code of the checkpoint may run.
        allow_pickle: whether ``pytorch_model.bin`` may be read, with ``weights_only=True``.
        access: where the weights of a repository are read.
        observe: called with the size of a download before it starts.

    Raises:
        CheckpointAccessError: it does not exist, is not complete, or access is refused.
        CheckpointCorruptError: a config, an index or a shard is broken; names the file.
        UnsupportedModelError: another format, an unknown architecture or quantisation, code or
            pickles without permission.
        UsageError: an unknown demo, or a revision of a local folder.
    """
    model, revision = hub.from_url(model, revision)
    found = find_gguf(model, revision=revision, observe=observe)
    if found is not None:
        return _open_gguf(found, id=model)
    location = _locate(
        model,
        revision=revision,
        with_code=trust_remote_code,
        with_tokenizer=access is not Access.DESCRIBED,
    )
    content = _read_config(location, where=model)
    if MODELOPT in location.names:
        exported = read_json_object(location.folder / MODELOPT, where=model)
        content = with_modelopt(content, exported)
    quantization = read_quantization(content, where=model)
    config = load_config(
        location.folder, content=content, trust_remote_code=trust_remote_code, where=model
    )
    weight_names = find_weight_files(
        content,
        names=location.names,
        read_index=lambda name: read_json_object(location.folder / name, where=model),
        allow_pickle=allow_pickle,
        where=model,
    )
    remote = None
    if location.snapshot is not None and access is Access.DOWNLOADED:
        _download(location.snapshot, names=weight_names, observe=observe)
    elif location.snapshot is not None:
        if access is Access.STREAMED and quantization is not None:
            quantization.check_streamed(where=model)
        remote = open_remote(location.snapshot, weight_names, observe=observe)
    weight_files = tuple(location.folder / name for name in weight_names)
    if quantization is not None and quantization.is_decoded_here:
        config = without_quantization(config)
    attention = take_attention(config)
    # Opening checks every header against the length of its file, and shapes against the config.
    with _opened(weight_files, quantization, allow_pickle=allow_pickle, remote=remote) as weights:
        headers = weights.headers()
    return Checkpoint(
        id=model,
        folder=location.folder,
        revision=None if location.snapshot is None else location.snapshot.commit,
        config=config,
        attention=attention,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        weight_files=weight_files,
        headers=headers,
        quantization=quantization,
        remote=remote,
    )


def _open_gguf(found: GgufLocation, *, id: str) -> Checkpoint:  # noqa: A002  the field's name
    contents = read_contents(found.file, where=id)
    settings = {"quant_method": GGUF, "gguf_file": contents.file.name}
    attention = take_attention(contents.config)
    with contents.open_weights() as weights:
        headers = weights.headers()
    return Checkpoint(
        id=id,
        folder=contents.file.parent,
        revision=found.commit,
        config=contents.config,
        attention=attention,
        trust_remote_code=False,
        allow_pickle=False,
        weight_files=(contents.file,),
        headers=headers,
        quantization=Quantization(method=GGUF, settings=settings),
        gguf=contents,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Location:
    folder: Path
    names: frozenset[str]
    """Files of the checkpoint, relative to the folder; on the Hub also those not downloaded yet."""
    snapshot: hub.Snapshot | None = None


def _locate(
    model: str, *, revision: str | None, with_code: bool, with_tokenizer: bool
) -> _Location:
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
        return _Location(folder=snapshot.folder, names=frozenset(snapshot.sizes), snapshot=snapshot)
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
    return _Location(folder=folder, names=names)


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


def _read_config(location: _Location, *, where: str) -> dict[str, Any]:
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


def _download(snapshot: hub.Snapshot, *, names: Collection[str], observe: Observer) -> None:
    absent = snapshot.absent(names)
    if absent:
        size = sum(snapshot.sizes[name] for name in absent) / 1e9
        observe(
            Announcement(
                text=f"downloading {snapshot.repo} at {snapshot.commit[:12]}: "
                f"{len(absent)} weight file{'s' * (len(absent) > 1)}, {size:.2f} GB"
            )
        )
        hub.fetch_files(snapshot, absent)
