"""One request for bytes of a file: where it may go, and what it may carry."""

from __future__ import annotations

import ipaddress
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from huggingface_hub import constants, get_session
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # lazy there

from precheck.checkpoint.remote.waiting import Pauses, asked_to_wait
from precheck.errors import CheckpointAccessError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from httpx2 import Response

    from precheck.records.progress import Observer

_DEFAULT_PORTS = {"http": 80, "https": 443}


class Transport:
    """Requests to the Hub, and to where it sends them; counts both requests and bytes.

    Safe to use from several threads.

    Args:
        observe: told where a server asks to wait.
    """

    def __init__(self, observe: Observer) -> None:
        self.pauses = Pauses(observe)
        self.num_requests = 0
        self.num_bytes = 0
        """Of content, also of what was read twice."""
        self._lock = threading.Lock()

    @contextmanager
    def get(self, address: str, *, start: int, end: int) -> Iterator[Response]:
        """The answer of a server to a request for the bytes from ``start`` to before ``end``.

        Redirects are not followed. The body is read where it is used, and not otherwise.
        """
        host = urlsplit(address).netloc
        self.pauses.keep(host)
        # the signed addresses that the Hub gives out carry their own permission
        headers = build_hf_headers(token=None if is_of_the_hub(address) else False)
        headers |= {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        with self._lock:
            self.num_requests += 1
        with get_session().stream(
            "GET",
            address,
            headers=headers,
            follow_redirects=False,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        ) as response:
            seconds = asked_to_wait(response.headers)
            if seconds is not None:
                self.pauses.ask(host, seconds)
            yield response

    def content(self, response: Response) -> Iterator[bytes]:
        """The body of an answer as it comes."""
        for piece in response.iter_raw():
            with self._lock:
                self.num_bytes += len(piece)
            yield piece


def check_redirect(address: str) -> None:
    """Checks that a server may send a request there.

    Raises:
        CheckpointAccessError: what is read there could be read and changed on the way.
    """
    parts = urlsplit(address)
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname)):
        return
    raise CheckpointAccessError(
        f"redirected to an address that is not https: {parts.scheme}://{parts.netloc} "
        "(expected https)",
        hint="check HF_ENDPOINT and the proxy",
    )


def is_of_the_hub(address: str) -> bool:
    """Whether an address is one of the Hub's own: scheme, host and port of HF_ENDPOINT."""
    return _origin(address) == _origin(constants.ENDPOINT)


def _origin(address: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
