"""The weight files of a repository that stay on the Hub, all at one commit."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from precheck.checkpoint.remote.coalesced import coalesced
from precheck.checkpoint.remote.file import RemoteFile
from precheck.checkpoint.remote.header import LENGTH_BYTES, read_header
from precheck.checkpoint.remote.shard import RemoteShard
from precheck.checkpoint.remote.transport import Transport
from precheck.checkpoint.shards import Span
from precheck.checkpoint.weights import open_shard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from precheck.checkpoint.hub import Snapshot
    from precheck.checkpoint.shards import Shard
    from precheck.records.progress import Observer

_T = TypeVar("_T")
_R = TypeVar("_R")

_REQUESTS_AT_ONCE = 8
_USUAL_HEADER_BYTES = 48 << 10
"""Of a file of a few hundred tensors; what is missing takes another request."""
_ENTRY_BYTES, _METADATA_BYTES = 92, 64
"""What a header has for a tensor besides its name, and besides its tensors."""


class Plan(NamedTuple):
    """What is going to be read."""

    num_bytes: int
    num_requests: int
    """As long as nothing breaks and no address expires."""


class RemoteFiles:
    """Weight files that are read by byte range; their headers are read when this is made.

    Args:
        snapshot: the repository at a commit, and where its files would be in the cache.
        names: the files that are not there.
        tensors: the names of the tensors in each, where an index says so.
        observe: told where a server asks to wait.

    Raises:
        CheckpointAccessError: the server does not send ranges, refuses, or cannot be reached.
        CheckpointCorruptError: a header is broken.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        names: Sequence[str],
        *,
        tensors: Mapping[str, Iterable[str]],
        observe: Observer,
    ) -> None:
        self._snapshot = snapshot
        self._transport = Transport(observe)
        expected = {name: _header_bytes(tensors.get(name)) for name in names}
        opened = self._each(lambda name: self._open(name, expected[name]), names)
        self._shards = dict(zip(names, opened, strict=True))

    @property
    def num_requests(self) -> int:
        """Requests so far, for headers too."""
        return self._transport.num_requests

    @property
    def num_bytes(self) -> int:
        """Bytes of content received so far."""
        return self._transport.num_bytes

    def open_shard(self, file: Path) -> Shard:
        """A weights file: from the cache if it is there, else on the Hub."""
        name = file.relative_to(self._snapshot.folder).as_posix()
        return self._shards[name] if name in self._shards else open_shard(file)

    def plan(self, parts: Mapping[str, Sequence[Span]]) -> Plan:
        """What ``hold`` would read."""
        spans = [span for _, span in self._spans(parts)]
        return Plan(sum(end - start for start, end in spans), len(spans))

    def hold(self, parts: Mapping[str, Sequence[Span]]) -> None:
        """Reads parts of tensors, several at once, and holds them in memory from now on.

        Args:
            parts: of a tensor by its name; those that are in no file here are left out.
        """
        spans = self._spans(parts)
        for (shard, span), content in zip(spans, self._fetch(spans), strict=True):
            shard.hold([(span, content)])

    def _fetch(self, spans: Sequence[tuple[RemoteShard, Span]]) -> list[bytearray]:
        return self._each(lambda pair: pair[0].file.read(*pair[1]), spans)

    def _open(self, name: str, expected: int) -> RemoteShard:
        snapshot = self._snapshot
        size = snapshot.sizes[name]
        file = RemoteFile(
            self._transport, repo=snapshot.repo, commit=snapshot.commit, name=name, size=size
        )
        start = file.read(0, min(size, expected))

        def read(first: int, last: int) -> bytearray:
            return start[first:last] if last <= len(start) else file.read(first, last)

        header = read_header(read, size=size, expected=len(start), where=name)
        shard = RemoteShard(file, header, fetch=self._fetch)
        shard.hold([(Span(0, len(start)), start)])  # the first tensors may be in it
        return shard

    def _spans(self, parts: Mapping[str, Sequence[Span]]) -> list[tuple[RemoteShard, Span]]:
        found = []
        for shard in self._shards.values():
            names = [name for name in shard.names() if name in parts]
            spans = [shard.in_file(name, part) for name in names for part in parts[name]]
            found += [(shard, span) for span in coalesced(spans)]
        return found

    def _each(self, task: Callable[[_T], _R], arguments: Iterable[_T]) -> list[_R]:
        """The results of a task, several at once; the first error ends the others."""
        with self._pool() as pool:
            return list(pool.map(task, arguments))

    @contextmanager
    def _pool(self) -> Iterator[ThreadPoolExecutor]:
        pool = ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="precheck ranges")
        try:
            yield pool
        except BaseException:  # Ctrl-C too: nobody waits for a server then
            self._transport.pauses.end()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        pool.shutdown()


def _header_bytes(tensors: Iterable[str] | None) -> int:
    """About as long as the header of a file with these tensors, and seldom less."""
    if tensors is None:
        return _USUAL_HEADER_BYTES
    names = sum(len(json.dumps(name)) + _ENTRY_BYTES for name in tensors)
    return LENGTH_BYTES + _METADATA_BYTES + names
