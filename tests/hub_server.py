"""A Hub on this machine: its API, redirects to signed addresses that expire, ranges, limits.

Files may be larger than any disk: of those that are ``Virtual`` only what is read is made.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
from huggingface_hub import constants, hf_api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

REPO = "someone/model"
COMMIT, LATER_COMMIT = "a" * 40, "b" * 40
TOKEN = "hf_of_a_test"
_PIECE_BYTES = 1 << 16


class Content(Protocol):
    """What a file holds."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, end: int) -> bytes: ...


@dataclass(frozen=True)
class OnDisk:
    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def read(self, start: int, end: int) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)


class Virtual:
    """A safetensors file whose numbers are all ones in bfloat16, but for those that are given.

    Args:
        tensors: code of the dtype, and shape, by name.
        values: the first bytes of a tensor, by its name.
    """

    def __init__(
        self,
        tensors: Mapping[str, tuple[str, tuple[int, ...]]],
        values: Mapping[str, bytes] | None = None,
    ) -> None:
        position, entries = 0, {}
        for name, (dtype, shape) in tensors.items():
            end = position + _BYTES[dtype] * math.prod(shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._start = len(text).to_bytes(8, "little") + text
        self._given = {
            len(self._start) + entries[name]["data_offsets"][0]: value
            for name, value in (values or {}).items()
        }
        self.size = len(self._start) + position

    def read(self, start: int, end: int) -> bytes:
        content = bytearray((b"\x80\x3f" * (end // 2 + 1 - start // 2))[start % 2 :][: end - start])
        for first, value in {0: self._start, **self._given}.items():
            low, high = max(start, first), min(end, first + len(value))
            if low < high:
                content[low - start : high - start] = value[low - first : high - first]
        return bytes(content)


_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1, "I32": 4}


@dataclass
class Hub:
    """Its files, how it misbehaves, and what it was asked."""

    files: dict[str, Content]
    commit: str = COMMIT
    key: int = 0
    """In the signed addresses that are given out; another one than this has expired."""
    expires_at_once: bool = False
    ignores_ranges: bool = False
    is_private: bool = False
    cuts: int = 0
    """Transfers still to be cut off, each after ``cut_after`` bytes."""
    cut_after: int = 1000
    limited: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Answers to give first: status and headers."""
    redirects_to: str | None = None
    """Instead of to the storage."""
    change: Callable[[Hub, str], None] | None = None
    """Called before each answer, with the path."""
    generation: str = ""
    """Of the content: another one changes every ETag."""
    extra_headers: dict[str, str] = field(default_factory=dict)
    """Of answers with content."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Of each: server, method and path."""
    tokens: list[tuple[str, str]] = field(default_factory=list)
    """Server and token of each request that had one."""
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    """Of each answer with content: server, first byte and end."""
    bytes_sent: Counter[str] = field(default_factory=Counter)
    """Of content, by server."""
    address: str = ""
    storage: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def etag(self, name: str) -> str:
        return hashlib.sha256(f"{self.generation} {name}".encode()).hexdigest()

    @property
    def ranges(self) -> list[str]:
        """Paths of requests for content of weights."""
        paths = (path.split("?")[0] for _, _, path in self.requests)
        return [path for path in paths if path.endswith(".safetensors")]

    def total_bytes(self) -> int:
        return self.bytes_sent.total()


def folder_files(folder: Path) -> dict[str, Content]:
    """What a folder holds, as a repository has it."""
    return {
        path.relative_to(folder).as_posix(): OnDisk(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, hub: Hub, server_name: str, *arguments: Any) -> None:
        self.hub = hub
        self.server_name = server_name
        super().__init__(*arguments)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.hub
        with hub.lock:
            hub.requests.append((self.server_name, self.command, self.path))
            token = self.headers.get("Authorization")
            if token is not None:
                hub.tokens.append((self.server_name, token))
            if hub.change is not None:
                hub.change(hub, self.path)
            limited = hub.limited.pop(0) if hub.limited and ".safetensors" in self.path else None
        if limited is not None:
            status, headers = limited
            self._send(status, headers, b"")
            return
        parts = urlsplit(self.path)
        if self.server_name == "storage":
            self._stored(parts.path.lstrip("/"), parse_qs(parts.query))
        elif match := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", parts.path):
            if "/tree/" in match[1]:
                self._tree()
            else:
                self._info(match[2])
        elif match := re.fullmatch(r"/(.+)/resolve/([^/]+)/(.+)", parts.path):
            self._resolve(match[2], unquote(match[3]))
        else:
            self._send(404, {}, b"")

    def _refused(self) -> bool:
        hub = self.hub
        if hub.is_private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"X-Error-Code": "RepoNotFound"}, b"")
            return True
        return False

    def _info(self, revision: str | None) -> None:
        if self._refused():
            return
        siblings = [{"rfilename": n, "size": f.size} for n, f in self.hub.files.items()]
        commit = revision if revision in {COMMIT, LATER_COMMIT} else self.hub.commit
        self._json({"id": REPO, "sha": commit, "siblings": siblings, "modelId": REPO})

    def _tree(self) -> None:
        entries = [
            {"type": "file", "path": n, "size": f.size, "oid": self.hub.etag(n)[:40]}
            for n, f in self.hub.files.items()
        ]
        self._json(entries)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _resolve(self, revision: str, name: str) -> None:
        if self._refused():
            return
        hub = self.hub
        content = hub.files.get(name)
        if content is None:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        headers = {
            "X-Repo-Commit": hub.commit if revision == "main" else revision,
            "ETag": f'"{hub.etag(name)}"',
        }
        if not name.endswith(".safetensors"):
            self._send_content(content, headers)
            return
        headers |= {"X-Linked-Size": str(content.size), "X-Linked-ETag": headers.pop("ETag")}
        key = -1 if hub.expires_at_once else hub.key
        address = f"{hub.storage}/{name}?key={key}"
        self._send(
            302, {**headers, **hub.extra_headers, "Location": hub.redirects_to or address}, b""
        )

    def _stored(self, name: str, query: dict[str, list[str]]) -> None:
        if query["key"] != [str(self.hub.key)]:
            self._send(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
            return
        self._send_content(self.hub.files[unquote(name)], {"ETag": f'"{self.hub.etag(name)}"'})

    def _send_content(self, content: Content, headers: dict[str, str]) -> None:
        size = content.size
        start, end, status = 0, size, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is not None and not self.hub.ignores_ranges:
            start, end, status = int(asked[1]), min(int(asked[2]) + 1, size), 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if start >= size:
            self._send(416, {"Content-Range": f"bytes */{size}"}, b"")
            return
        is_asked = self.command != "HEAD"
        if is_asked:  # told before it is sent: a client may go by the headers alone
            with self.hub.lock:
                self.hub.spans.append((self.server_name, start, end))
        length = {"Content-Length": str(end - start)}
        self._start(status, {**headers, **self.hub.extra_headers, **length})
        if not is_asked:
            return
        is_cut = self._is_cut(end - start)
        end = start + self.hub.cut_after if is_cut else end
        try:
            for position in range(start, end, _PIECE_BYTES):
                self._write(content.read(position, min(end, position + _PIECE_BYTES)))
        except (BrokenPipeError, ConnectionResetError):
            is_cut = True
        self.close_connection = self.close_connection or is_cut

    def _is_cut(self, length: int) -> bool:
        with self.hub.lock:
            is_cut = self.server_name == "storage" and self.hub.cuts > 0
            is_cut = is_cut and length > self.hub.cut_after
            self.hub.cuts -= is_cut
        return is_cut

    def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _write(self, content: bytes) -> None:
        # counted first: a client may look at the count as soon as it has the bytes
        with self.hub.lock:
            self.hub.bytes_sent[self.server_name] += len(content)
        self.wfile.write(content)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self._start(status, {**headers, "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self._write(body)


@contextmanager
def served(files: Mapping[str, Content], **behaviour: Any) -> Iterator[Hub]:
    """A Hub with one repository, ``REPO``; its storage listens on another port."""
    hub = Hub(files=dict(files), **behaviour)
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, hub, name))
        for name in ("hub", "storage")
    ]
    threads = []
    for server in servers:
        server.daemon_threads = True
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        threads.append(thread)
    hub.address, hub.storage = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()


@contextmanager
def endpoint(
    hub: Hub, cache: Path, monkeypatch: Any, *, token: str | None = None
) -> Iterator[None]:
    """Lets huggingface_hub take this Hub for the one, and an empty folder for its cache."""
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", hub.address)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(hf_api.api, "endpoint", hub.address)
        patch.setattr("tqdm.std.tqdm.monitor_interval", 0)  # its thread would stay
        patch.setenv("HF_TOKEN", token or "")
        huggingface_hub.close_session()
        try:
            yield
        finally:
            huggingface_hub.close_session()
