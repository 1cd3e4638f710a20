"""A proxy in front of a model server: every request and every answer goes through it."""

from __future__ import annotations

import http.client
import json
import math
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.served.engines import serving_with

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def as_it_is(_path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Nothing is altered."""
    return body


@dataclass(frozen=True, kw_only=True)
class Altering:
    """What a proxy does to JSON that goes through it, by the path that is asked."""

    request: Callable[[str, dict[str, Any]], dict[str, Any]] = as_it_is
    answer: Callable[[str, dict[str, Any]], dict[str, Any]] = as_it_is


@contextmanager
def in_front_of(url: str, altering: Altering) -> Iterator[str]:
    """The address of a proxy that sends everything on to a server."""
    host = urlsplit(url).netloc

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            self.pass_on(None)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.pass_on(json.dumps(altering.request(self.path, asked)).encode())

        def pass_on(self, body: bytes | None) -> None:
            server = http.client.HTTPConnection(host, timeout=60)
            headers = {"Content-Type": "application/json"}
            server.request(self.command, self.path, body=body, headers=headers)
            reply = server.getresponse()
            told = json.loads(reply.read())
            server.close()
            if reply.status < 400:
                told = altering.answer(self.path, told)
            content = json.dumps(told).encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving_with(Handler) as address:
        yield address


# What a proxy alters, in the words of vLLM and of llama.cpp.


def with_bos_twice(bos: int, encode: Callable[[str], list[int]]) -> Altering:
    """Texts are sent on as token ids that begin with BOS twice."""

    def request(_path: str, body: dict[str, Any]) -> dict[str, Any]:
        prompt = body.get("prompt")
        if not isinstance(prompt, str):
            return body
        ids = encode(prompt)
        return body | {"prompt": [bos] * (2 - (ids[:1] == [bos])) + ids}

    return Altering(request=request)


def with_another_template(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """What a user says is put into another template before it is sent on."""
    if not path.endswith("/chat/completions"):
        return body
    (said,) = body["messages"]
    return body | {"messages": [said | {"content": f"[INST] {said['content']} [/INST]"}]}


def of_rows(change: Callable[[dict[str, float | None]], dict[str, float | None]]) -> Altering:
    """Each position's log-probabilities are altered, those of the prompt too.

    Args:
        change: takes them by token, and gives them back.
    """

    def answer(_path: str, body: dict[str, Any]) -> dict[str, Any]:
        for choice in body.get("choices", ()):
            for row in filter(None, choice.get("prompt_logprobs") or ()):
                for token, value in change(
                    {key: each["logprob"] for key, each in row.items()}
                ).items():
                    row[token]["logprob"] = value
            listed = choice.get("logprobs")
            if listed:
                rows = [change(row) for row in listed["top_logprobs"]]
                listed["top_logprobs"] = rows
                listed["token_logprobs"] = [
                    row.get(token) for row, token in zip(rows, listed["tokens"], strict=True)
                ]
        for said in body.get("completion_probabilities", ()):
            changed = change({str(each["id"]): each["logprob"] for each in said["top_logprobs"]})
            for each in said["top_logprobs"]:
                each["logprob"] = changed[str(each["id"])]
            said["logprob"] = changed.get(str(said["id"]), said["logprob"])
        return body

    return Altering(answer=answer)


def scaled(row: dict[str, float | None]) -> dict[str, float | None]:
    """Logits times 1.1: told ones, and the rest as one token."""
    known = [value for value in row.values() if value is not None]
    rest = max(1e-12, 1 - sum(math.exp(value) for value in known))
    total = sum(math.exp(1.1 * value) for value in (*known, math.log(rest)))
    return {
        token: None if value is None else 1.1 * value - math.log(total)
        for token, value in row.items()
    }


def top_10(row: dict[str, float | None]) -> dict[str, float | None]:
    """The ten likeliest sum to 1, the others have no probability."""
    known = {token: value for token, value in row.items() if value is not None}
    kept = sorted(known, key=known.__getitem__, reverse=True)[:10]
    total = math.log(sum(math.exp(known[token]) for token in kept))
    return {token: known[token] - total if token in kept else -9999.0 for token in row}


def one_row_of_nan(_path: str, body: dict[str, Any]) -> dict[str, Any]:
    """One position has no numbers, of the prompt where it is told."""
    for choice in body.get("choices", ()):
        for told in (choice.get("prompt_logprobs") or ())[3:4]:
            for each in told.values():
                each["logprob"] = None
    for said in body.get("completion_probabilities", ())[3:4]:
        for each in (said, *said["top_logprobs"]):
            each["logprob"] = None
    return body


@contextmanager
def company(url: str, path: str, body: dict[str, Any]) -> Iterator[None]:
    """Others ask the same server all the time."""
    is_over = threading.Event()
    content = json.dumps(body).encode()

    def ask() -> None:
        while not is_over.is_set():
            request = urllib.request.Request(  # noqa: S310  our own server
                f"{url}{path}", data=content, headers={"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
                assert json.load(reply)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        yield
    finally:
        is_over.set()
        for asker in askers:
            asker.join()
