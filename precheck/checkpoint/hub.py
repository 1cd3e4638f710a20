"""Fetching a checkpoint from the Hugging Face Hub; cache, tokens and offline mode are its own."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from precheck.errors import CheckpointAccessError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

TransportError: type[Exception] = HfHubHTTPError.__mro__[1]
"""The transport's own error, whichever HTTP library huggingface_hub is built on."""

_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/?#]+/[^/?#]+)"
    r"(?:/(?:tree|blob|resolve|commit)/(?P<revision>[^/?#]+))?"
)

_DESCRIPTION_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Configs, tokenizers, chat templates, indices: all files of a model besides its weights."""

_OF_TOKENIZERS = ("tokenizer", "vocab", "merges", "added_tokens", "special_tokens", "spiece")
"""How names of a tokenizer's files begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One revision of a repository in the local cache, perhaps still without its weights."""

    repo: str
    revision: str | None
    """As requested."""
    commit: str
    folder: Path
    sizes: Mapping[str, int]
    """Bytes by file name of the whole repository; of what the cache holds when offline."""

    def absent(self, names: Collection[str]) -> tuple[str, ...]:
        """Which of these files are not in the cache yet."""
        return tuple(name for name in names if not (self.folder / name).exists())


def fetch_description(
    repo: str,
    *,
    revision: str | None,
    with_code: bool,
    with_tokenizer: bool = True,
    check: Callable[[Collection[str], Callable[[str], Path]], None],
) -> Snapshot:
    """Downloads everything small: configs, indices, the tokenizer, Python files if ``with_code``.

    If the Hub cannot be reached, the cache is used as it is.

    Args:
        repo: ``owner/name``.
        revision: branch, tag or commit; None for the default branch.
        with_code: whether to download the repository's own Python files.
        with_tokenizer: whether to download its tokenizer, which may be 30 MB.
        check: called with the names of all files, and what downloads a small one by its name,
            before anything else is downloaded; may raise.

    Raises:
        CheckpointAccessError: unreachable, unknown, gated; says which and what to do.
    """
    with translated(repo, revision=revision):
        sizes, commit = _list_files(repo, revision=revision)
        if sizes is None:
            cached = huggingface_hub.snapshot_download(
                repo, revision=revision, local_files_only=True, allow_patterns=["config.json"]
            )
            sizes = {
                file.relative_to(cached).as_posix(): file.stat().st_size
                for file in Path(cached).rglob("*")
                if file.is_file()
            }
        check(sizes, lambda name: Path(_download(repo, revision=revision, names=[name])) / name)
        names = [
            name
            for name in sizes
            if _is_description(name, with_code=with_code)
            and (with_tokenizer or not _is_of_a_tokenizer(name))
        ]
        folder = Path(_download(repo, revision=revision, names=names))
        if commit not in {None, folder.name}:  # the branch has moved on between the two
            sizes = _list_files(repo, revision=folder.name)[0] or sizes
    return Snapshot(repo=repo, revision=revision, commit=folder.name, folder=folder, sizes=sizes)


def from_url(model: str, revision: str | None) -> tuple[str, str | None]:
    """Repository and revision of a model's address on the Hub; anything else as it is.

    >>> from_url("https://huggingface.co/Qwen/Qwen2-7B/tree/main", None)
    ('Qwen/Qwen2-7B', 'main')
    """
    address = _ADDRESS.match(model)
    if address is None:
        return model, revision
    return address["repo"], revision or address["revision"]


def fetch_files(snapshot: Snapshot, names: Collection[str]) -> None:
    """Downloads these files into the snapshot's folder, except those already in the cache.

    Raises:
        CheckpointAccessError: as ``fetch_description``.
    """
    with translated(snapshot.repo, revision=snapshot.revision):
        # By commit: the branch may have moved on since the description was fetched.
        _download(snapshot.repo, revision=snapshot.commit, names=names)


def list_sizes(repo: str, *, revision: str | None) -> dict[str, int] | None:
    """Bytes by name of all files of a repository; None if the Hub cannot be reached.

    Raises:
        CheckpointAccessError: unknown, gated, or no such revision.
    """
    with translated(repo, revision=revision):
        return _list_files(repo, revision=revision)[0]


def fetch_file(repo: str, name: str, *, revision: str | None) -> tuple[Path, str]:
    """One file in the cache, downloaded unless it is there, and its commit.

    Raises:
        CheckpointAccessError: as ``fetch_description``; offline, also that it is not in the cache.
    """
    with translated(repo, revision=revision):
        folder = Path(_download(repo, revision=revision, names=[name]))
    if not (folder / name).exists():
        message, hint = _UNREACHABLE
        raise CheckpointAccessError(message.format(repo=f"{repo}:{name}"), hint=hint)
    return folder / name, folder.name


def _list_files(repo: str, *, revision: str | None) -> tuple[dict[str, int] | None, str | None]:
    """Bytes by file name, and the commit; None where the Hub cannot be reached."""
    try:
        info = huggingface_hub.model_info(repo, revision=revision, files_metadata=True)
    except HfHubHTTPError:
        raise
    except (OfflineModeIsEnabled, TransportError):
        return None, None
    sizes = {
        file.rfilename: file.size if isinstance(file.size, int) else 0
        for file in info.siblings or []
    }
    return sizes, info.sha


def _is_description(name: str, *, with_code: bool) -> bool:
    if name.endswith(".py"):
        return with_code
    in_root = "/" not in name or name.startswith("additional_chat_templates/")
    is_pooling = name.count("/") == 1 and name.endswith("_Pooling/config.json")
    return (in_root or is_pooling) and name.endswith(_DESCRIPTION_SUFFIXES)


def _is_of_a_tokenizer(name: str) -> bool:
    """Whether only something that takes text needs a file."""
    return not name.endswith((".json", ".py")) or name.startswith(_OF_TOKENIZERS)


def _download(repo: str, *, revision: str | None, names: Collection[str]) -> str:
    return huggingface_hub.snapshot_download(
        repo, revision=revision, allow_patterns=[_escaped(name) for name in names]
    )


def _escaped(name: str) -> str:
    return name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]")


_UNREACHABLE = (
    "no folder {repo!r}, it is not in the cache, and the Hub cannot be reached",
    "check the network, the proxy and HF_HUB_OFFLINE, or pass a local folder",
)

_TRANSLATIONS: tuple[tuple[type[Exception], str, str], ...] = (
    (
        GatedRepoError,
        "no access to the gated Hub repository {repo!r}",
        "request access at https://huggingface.co/{repo}, then: hf auth login",
    ),
    (
        RepositoryNotFoundError,
        "no folder or Hub repository of that name: {repo!r}",
        "check the spelling; if it is private: hf auth login",
    ),
    (
        RevisionNotFoundError,
        "no revision {revision!r} in Hub repository {repo!r}",
        "see https://huggingface.co/{repo}/commits/main for branches, tags and commits",
    ),
    (LocalEntryNotFoundError, *_UNREACHABLE),
    (OfflineModeIsEnabled, *_UNREACHABLE),
    (
        HFValidationError,
        "neither a folder nor a Hub id: {repo!r} (expected owner/name)",
        "check the spelling of the path",
    ),
    (
        HfHubHTTPError,
        "the Hub refused {repo!r}: {error!r}",
        "try again later; status of the Hub: https://status.huggingface.co",
    ),
    (
        TransportError,
        "connection to the Hub lost while fetching {repo!r}: {error!r}",
        "run the same command again: downloaded files are kept",
    ),
    (
        OSError,  # after those of the network, which are among them
        "cannot store {repo!r} in the cache: {error!r}",
        "check disk space and permissions, or set HF_HOME to another disk",
    ),
    *(
        (
            error_type,
            "the Hub sent an invalid answer about {repo!r}: {error!r}",
            "check HF_ENDPOINT and the proxy, or try again later",
        )
        for error_type in (ValueError, LookupError, TypeError, AttributeError)
    ),
)
"""The Hub's errors, a subclass before its base: message and hint."""


@contextmanager
def translated(repo: str, *, revision: str | None) -> Iterator[None]:
    """Raises what the Hub's library and the transport raise as an error of ours.

    Raises:
        CheckpointAccessError: in place of any of them.
    """
    error_types = tuple(error_type for error_type, _, _ in _TRANSLATIONS)
    try:
        yield
    except error_types as error:
        message, hint = next(
            (message, hint)
            for error_type, message, hint in _TRANSLATIONS
            if isinstance(error, error_type)
        )
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointAccessError(
            message.format(repo=repo, revision=revision or "main", error=first_line),
            hint=hint.format(repo=repo),
        ) from error
