"""Requests to one server, and to nothing else: bounded in time and size, tried again, redacted."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import httpx2

from precheck.errors import ServerError, UsageError
from precheck.version import __version__

if TYPE_CHECKING:
    from types import TracebackType

MOST_BYTES = 8 << 20
"""Of an answer. Log-probabilities of a prompt of 200 tokens and 20 candidates each are 0.5 MB."""
MOST_REDIRECTS = 3
MOST_SHOWN = 200
"""Characters of a server's own words in a message."""
PAUSE_SECONDS = 0.5
"""Before a request is sent again; doubled each time."""
_TRIED_AGAIN = frozenset({429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_REFUSED = frozenset({401, 403})


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer."""

    status: int
    body: Any
    """The JSON value; None where the body is not JSON."""
    text: str
    """The start of the body, for messages."""

    @property
    def is_good(self) -> bool:
        """Whether the request was served."""
        return self.status == httpx2.codes.OK


class HttpClient:
    """Sends requests to one address.

    Args:
        url: of the server, with or without ``/v1``.
        key: sent as a bearer token, to this address only; None for none.
        seconds: time limit of a request, from the first byte sent to the last one read.
        retries: how often a request is sent again that the server failed to answer.
    """

    def __init__(self, url: str, *, key: str | None, seconds: float, retries: int) -> None:
        self.url = root_of(url)
        self._seconds, self._retries = seconds, retries
        headers = {
            "User-Agent": f"precheck/{__version__}",
            "Accept": "application/json",
            "Accept-Encoding": "identity",  # the bound is on what is read
        }
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        # no proxy and no netrc of the environment: nothing else is contacted, or gets the key
        self._client = httpx2.Client(
            headers=headers, timeout=seconds, follow_redirects=False, trust_env=False
        )

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the connections."""
        self._client.close()

    def get(self, path: str) -> Reply:
        """What stands at a path; errors as of :meth:`post`."""
        return self._send("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        """The answer to a JSON request, also where its status is an error below 500.

        Raises:
            ServerError: no answer, one that ends early, takes too long or is too large, a key that
                is refused, a redirect to another place, or errors of the server that stay.
        """
        return self._send("POST", path, body)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> Reply:
        pause = PAUSE_SECONDS
        for attempt in range(self._retries + 1):
            is_last = attempt == self._retries
            try:
                reply = self._once(method, f"{self.url}{path}", body)
            except httpx2.TransportError as error:
                if is_last or isinstance(error, httpx2.TimeoutException):
                    raise self._failure(error, path) from error
            else:
                if reply.status not in _TRIED_AGAIN or is_last:
                    return self._checked(reply, path)
            time.sleep(pause)
            pause *= 2
        raise AssertionError  # pragma: no cover  the last attempt returns or raises

    def _once(self, method: str, url: str, body: dict[str, Any] | None) -> Reply:
        deadline = time.monotonic() + self._seconds
        for _ in range(MOST_REDIRECTS + 1):
            with self._client.stream(method, url, json=body) as response:
                if response.status_code not in _REDIRECTS:
                    return self._read(response, deadline)
                target = response.url.join(response.headers.get("Location", ""))
            if not _is_same_place(str(target), self.url):
                raise ServerError(
                    f"redirect to another place refused: {_bare(str(target))!r} (expected"
                    f" {self.url})",
                    hint="name the address that answers; a key is never sent elsewhere",
                )
            url = str(target)
        raise ServerError(
            f"more than {MOST_REDIRECTS} redirects at {self.url}", hint="check the address"
        )

    def _read(self, response: httpx2.Response, deadline: float) -> Reply:
        content = bytearray()
        for part in response.iter_bytes():
            content += part
            if len(content) > MOST_BYTES:
                raise ServerError(
                    f"answer of {self.url} is too long (expected at most {MOST_BYTES:,} bytes)",
                    hint="check that the address is that of an engine",
                )
            if time.monotonic() > deadline:
                raise httpx2.ReadTimeout("the whole answer takes too long")
        text = content.decode(errors="replace")
        return Reply(
            status=response.status_code, body=_json_value(text), text=text[:MOST_SHOWN].strip()
        )

    def _checked(self, reply: Reply, path: str) -> Reply:
        if reply.status in _REFUSED:
            raise ServerError(
                f"{self.url} refuses access (HTTP {reply.status})",
                hint="set the key in the environment: PRECHECK_API_KEY, or --api-key-env NAME",
            )
        if reply.status in _TRIED_AGAIN:
            raise ServerError(
                f"{self.url}{path} answers HTTP {reply.status}: {reply.text!r}",
                hint="look into its log; log-probabilities that are NaN make some engines fail so",
                status=reply.status,
            )
        return reply

    def _failure(self, error: httpx2.TransportError, path: str) -> ServerError:
        if isinstance(error, httpx2.TimeoutException):
            return ServerError(
                f"no whole answer of {self.url}{path} within {self._seconds:g} seconds",
                hint="allow more: --timeout SECONDS, or ask for fewer tokens: --generate N",
            )
        if isinstance(error, httpx2.ConnectError):
            return ServerError(
                f"no server at {self.url}: {error}", hint="start it, and check address and port"
            )
        return ServerError(
            f"answer of {self.url}{path} ends early: {error}", hint="look into the server's log"
        )


def root_of(url: str) -> str:
    """The address without ``/v1`` and what follows.

    >>> root_of("http://localhost:8000/v1/")
    'http://localhost:8000'

    Raises:
        UsageError: it is no address of HTTP, or holds a name and a password.
    """
    hint = "http://localhost:8000"
    try:
        parts = urlsplit(url)
        has_port = parts.port is not None or parts.hostname is not None
    except ValueError as error:
        raise UsageError(f"not an address: {url!r}: {error}", hint=hint) from error
    if parts.scheme not in {"http", "https"} or not parts.hostname or not has_port:
        raise UsageError(
            f"not an address of a server: {url!r} (expected http:// or https://)", hint=hint
        )
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            "a name or a password in the address (expected none)",
            hint="set a key in the environment: PRECHECK_API_KEY",
        )
    if not url.isprintable() or parts.query or parts.fragment:
        raise UsageError(f"not an address of a server: {url!r} (expected no query)", hint=hint)
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_same_place(target: str, url: str) -> bool:
    one, other = httpx2.URL(target), httpx2.URL(url)
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _bare(url: str) -> str:
    """An address without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}"


def _json_value(text: str) -> Any:
    """The value, with ``NaN`` as some engines write it; None where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
