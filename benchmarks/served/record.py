"""Records what an engine answers about the tests' tiny model, as test data.

``python -m benchmarks.served.record FOLDER`` writes the model into a folder, to be served;
``... FOLDER URL FILE.json WORDS`` asks the engine that serves it. ``WORDS`` say which engine, in
which version and configuration, on which processor.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from precheck.served.http_client import HttpClient, Reply
from precheck.served.verify import verify
from tests.served.sessions import REQUEST, checkpoint, key

if TYPE_CHECKING:
    from collections.abc import Callable


def recorded(url: str, folder: Path) -> dict[str, Any]:
    """Status and JSON of every answer, the first to each request."""
    exchanges: dict[str, Any] = {}
    send: Callable[..., Reply] = HttpClient._once  # noqa: SLF001  below retries and errors

    def once(client: HttpClient, method: str, address: str, body: dict[str, Any] | None) -> Reply:
        reply = send(client, method, address, body)
        exchanges.setdefault(
            key(method, address.removeprefix(client.url), body or {}), (reply.status, reply.body)
        )
        return reply

    with mock.patch.object(HttpClient, "_once", once):
        served = verify(url, str(folder), request=REQUEST, observe=lambda _: None)
    print(served.sentence)
    return exchanges


def main(folder: str, url: str = "", file: str = "", words: str = "") -> None:
    """Writes the model, or the recording."""
    if not url:
        checkpoint(Path(folder))
        return
    session = {"engine": words, "exchanges": recorded(url, Path(folder))}
    Path(file).write_text(json.dumps(session, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
