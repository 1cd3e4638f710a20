"""From what the user names to a checkpoint on disk that can be scanned."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING

from precheck.checkpoint import hub
from precheck.checkpoint.config import (
    load_config,
    read_json_object,
    take_attention,
    without_quantization,
)
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.formats import find_weight_files
from precheck.checkpoint.gguf.contents import GgufContents, read_contents
from precheck.checkpoint.gguf.location import GgufLocation, find_gguf
from precheck.checkpoint.naming.location import locate, read_config_at
from precheck.checkpoint.quantization import (
    GGUF,
    MODELOPT,
    Quantization,
    read_quantization,
    with_modelopt,
)
from precheck.checkpoint.remote.opening import open_remote
from precheck.checkpoint.weights import Headers, Weights, open_shard
from precheck.records.progress import Announcement, Observer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    import transformers

    from precheck.checkpoint.remote.files import RemoteFiles
    from precheck.checkpoint.shards import Shard
    from precheck.records.attention import Attention


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
    location = locate(
        model,
        revision=revision,
        with_code=trust_remote_code,
        with_tokenizer=access is not Access.DESCRIBED,
    )
    content = read_config_at(location, where=model)
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
