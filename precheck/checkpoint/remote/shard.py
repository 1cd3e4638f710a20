"""A safetensors file on the Hub as a shard: what is not held is read by byte range."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.remote.coalesced import coalesced
from precheck.checkpoint.shards import Span
from precheck.checkpoint.torch_dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from precheck.checkpoint.remote.file import RemoteFile
    from precheck.checkpoint.remote.header import Header

    Fetched = Sequence[tuple["RemoteShard", Span]]

_MOST_REQUESTS = 2000
"""For rows of one tensor; if they are more, the bytes between some of them are read too."""


class RemoteShard:
    """A file whose header is known.

    Args:
        file: where the tensors are read.
        header: its header.
        fetch: reads spans of the file, several at once, in their order.
    """

    def __init__(
        self, file: RemoteFile, header: Header, *, fetch: Callable[[Fetched], list[bytearray]]
    ) -> None:
        self.file = file
        self.header = header
        self._fetch = fetch
        self._held: list[tuple[Span, memoryview]] = []

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.file.size

    def names(self) -> Sequence[str]:
        """Its tensors."""
        return list(self.header.tensors)

    def dtype(self, name: str) -> str:
        """The torch name of a tensor's dtype."""
        return self.header.tensors[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.header.tensors[name].shape

    def in_file(self, name: str, part: Span) -> Span:
        """Where bytes of a tensor lie in the file."""
        start = self.header.tensors[name].span.start
        return Span(start + part.start, start + part.end)

    def hold(self, held: Iterable[tuple[Span, bytearray]]) -> None:
        """From now on these bytes of the file are read from memory."""
        more = ((span, memoryview(content)) for span, content in held)
        self._held = sorted([*self._held, *more], key=lambda each: each[0])

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in memory, where it stays: who looks at a scale or an embedding is not alone."""
        stored = self.header.tensors[name]
        dtype = torch_dtype(stored.dtype)
        if stored.span.start == stored.span.end:
            return torch.empty(stored.shape, dtype=dtype)
        content = bytearray(stored.span.end - stored.span.start)
        self.read(name, [Span(0, len(content))], memoryview(content))
        if self._find_held(stored.span) is None:
            self.hold([(stored.span, content)])
        return torch.frombuffer(content, dtype=dtype).view(stored.shape)

    def read(self, name: str, spans: Sequence[Span], into: memoryview) -> None:
        """Copies spans of a tensor's bytes into memory.

        Where there are several, rows of an embedding, they are held from then on: the other dtypes
        read them too.
        """
        if len(spans) > 1:
            self._hold_rows([self.in_file(name, part) for part in spans])
        filled = 0
        for part in spans:
            span = self.in_file(name, part)
            room = into[filled : filled + span.end - span.start]
            held = self._find_held(span)
            if held is None:
                self.file.read_into(span.start, room)
            else:
                room[:] = held
            filled += len(room)

    def _hold_rows(self, spans: Iterable[Span]) -> None:
        absent = [span for span in spans if self._find_held(span) is None]
        together = coalesced(absent, at_most=_MOST_REQUESTS)
        contents = self._fetch([(self, span) for span in together])
        self.hold(zip(together, contents, strict=True))

    def _find_held(self, span: Span) -> memoryview | None:
        place = bisect_right(self._held, span.start, key=lambda held: held[0].start) - 1
        if place < 0 or self._held[place][0].end < span.end:
            return None
        (start, _), content = self._held[place]
        return content[span.start - start : span.end - start]

    def read_ahead(self, names: Iterable[str], *, limit: int) -> None:
        """Nothing: bytes on the Hub are read when they are needed."""

    def check_unchanged(self) -> None:
        """Nothing: a commit does not change, and every answer is compared with the first."""

    def close(self) -> None:
        """Nothing: what is held serves whoever opens the checkpoint next."""
