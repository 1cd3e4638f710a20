"""A file on the Hub that is read by byte range, at one commit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urljoin, urlsplit

from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # lazy there

from precheck.checkpoint.hub import TransportError, translated
from precheck.checkpoint.remote.transport import Transport, check_redirect, is_of_the_hub
from precheck.checkpoint.remote.waiting import own_wait
from precheck.errors import CheckpointAccessError, CheckpointCorruptError, first_line

if TYPE_CHECKING:
    from httpx2 import Response

_MOST_FAILURES = 5
"""In a row, without a byte between them."""
_MOST_REDIRECTS = 5
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_OK, _PARTIAL, _FAILED, _NOT_SATISFIABLE = 200, 206, 400, 416


class _Attempt(NamedTuple):
    """What came of one request."""

    num_bytes: int = 0
    failure: str = ""
    """Why fewer than asked for came; empty where nothing went wrong."""


class RemoteFile:
    """One file of a repository at a commit; safe to use from several threads.

    The Hub is asked once where the bytes are, and again when that address has expired.

    Args:
        transport: makes the requests.
        repo: ``owner/name``.
        commit: the one that every range is read at.
        name: of the file in the repository.
        size: in bytes, as the Hub lists it.
    """

    def __init__(
        self, transport: Transport, *, repo: str, commit: str, name: str, size: int
    ) -> None:
        self.name = name
        self.size = size
        self._transport = transport
        self._repo = repo
        self._commit = commit
        self._hub_address = hf_hub_url(repo, name, revision=commit)
        self._address = self._hub_address
        self._seen: dict[str, str] = {"X-Repo-Commit": commit, "X-Linked-Size": str(size)}
        """What tells one content from another, as the first answer gave it."""

    def read(self, start: int, end: int) -> bytearray:
        """The bytes from ``start`` to before ``end``; see ``read_into``."""
        content = bytearray(end - start)
        self.read_into(start, memoryview(content))
        return content

    def read_into(self, start: int, into: memoryview) -> None:
        """Fills memory with the bytes from ``start`` on; goes on where a transfer broke.

        Raises:
            CheckpointAccessError: the server does not send ranges, refuses, or cannot be reached.
            CheckpointCorruptError: the file has changed.
        """
        filled = num_failures = num_redirects = 0
        while filled < len(into):
            with translated(self._repo, revision=self._commit):
                attempt = self._attempt(start + filled, into[filled:])
            filled += attempt.num_bytes
            if attempt.num_bytes:
                num_failures = num_redirects = 0
            elif attempt.failure:
                num_failures, num_redirects = num_failures + 1, 0
                if num_failures > _MOST_FAILURES:
                    raise self._lost(attempt.failure)
                self._transport.pauses.ask(urlsplit(self._address).netloc, own_wait(num_failures))
            else:
                num_redirects += 1
                if num_redirects > _MOST_REDIRECTS:
                    raise self._lost("it redirects in circles")

    def _attempt(self, start: int, into: memoryview) -> _Attempt:
        filled, end = 0, start + len(into)
        address = self._address
        try:
            with self._transport.get(address, start=start, end=end) as response:
                attempt = self._judged(response, address)
                if attempt is not None:
                    return attempt
                self._check_content(response, start=start, end=end)
                for piece in self._transport.content(response):
                    if filled + len(piece) > len(into):
                        raise self._no_ranges("more bytes than it was asked for")
                    into[filled : filled + len(piece)] = piece
                    filled += len(piece)
        except HfHubHTTPError:
            raise
        except TransportError as error:
            return _Attempt(num_bytes=filled, failure=first_line(error))
        is_whole = filled == len(into)
        return _Attempt(num_bytes=filled, failure="" if is_whole else "it sent too few bytes")

    def _judged(self, response: Response, address: str) -> _Attempt | None:
        """What an answer comes to that brings no bytes; None if it brings some."""
        status = int(response.status_code)
        if is_of_the_hub(address):
            for name in ("X-Repo-Commit", "X-Linked-Size", "X-Linked-ETag"):
                self._check_unchanged(response, name)
        if response.has_redirect_location:
            self._address = urljoin(address, response.headers["Location"])
            check_redirect(self._address)
            return _Attempt()
        if status in _BUSY:
            return _Attempt(failure=f"it answers {status}")
        if status == _NOT_SATISFIABLE:
            raise self._changed("it is shorter than it was")
        if status >= _FAILED and not is_of_the_hub(address):
            # its time is over; no other error shows the address, which is as good as a password
            self._address = self._hub_address
            return _Attempt(failure=f"it answers {status}")
        hf_raise_for_status(response)
        self._check_unchanged(response, "ETag", host=urlsplit(address).netloc)
        return None

    def _check_content(self, response: Response, *, start: int, end: int) -> None:
        """Checks that what follows is a part of the range that was asked for."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise self._no_ranges(f"bytes in the encoding {encoding[:20]!r}")
        if response.status_code == _OK and (start, end) == (0, self.size):
            return  # the whole file is what was asked for
        if response.status_code != _PARTIAL:
            raise self._no_ranges("the whole file")
        found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if found is None:
            raise self._no_ranges("a range, but does not say which")
        first, last, size = map(int, found.groups())
        if size != self.size:
            raise self._changed(f"it has {size} bytes instead of {self.size}")
        if first != start or not first <= last < end:
            raise self._no_ranges("another range")

    def _check_unchanged(self, response: Response, name: str, *, host: str = "") -> None:
        """Checks that a header says what it said the first time."""
        value = response.headers.get(name)
        if value is not None and self._seen.setdefault(f"{name}{host}", value) != value:
            raise self._changed(f"another {name}")

    def _changed(self, how: str) -> CheckpointCorruptError:
        return CheckpointCorruptError(
            f"weights file changed on the Hub: {self.name!r} of {self._repo!r} at "
            f"{self._commit[:12]} ({how})",
            hint="scan again",
        )

    def _no_ranges(self, what: str) -> CheckpointAccessError:
        host = urlsplit(self._address).netloc
        return CheckpointAccessError(
            f"{host} does not send the part of {self.name!r} that was asked for, but {what}",
            hint="it may be a proxy; without --static and --stream the files are downloaded",
        )

    def _lost(self, why: str) -> CheckpointAccessError:
        host = urlsplit(self._address).netloc
        return CheckpointAccessError(
            f"{host} does not send {self.name!r} of {self._repo!r}: {why}",
            hint="check the network and the proxy, and try again later",
        )
