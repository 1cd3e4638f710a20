"""Servers that do not answer, or answer nonsense: exit code and message, and nothing leaks."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

import pytest

from precheck import cli
from precheck.errors import ExitCode, ServerError, UsageError
from precheck.served import http_client
from precheck.served.http_client import MOST_BYTES, HttpClient, root_of
from tests.served.engines import Engine, serving, serving_with
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

KEY = "sk-a-key-that-is-secret"
MODELS = json.dumps({"data": [{"id": "tiny"}]}).encode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny("qwen2", num_layers=2)
    return save_checkpoint(model, tmp_path_factory.mktemp("checkpoint"), tokenizer=True)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "PAUSE_SECONDS", 0.001)


@dataclass
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def precheck(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["precheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


def handler(
    status: int = 200,
    body: bytes = b"",
    *,
    headers: dict[str, str] | None = None,
    claimed: int | None = None,
    seconds: float = 0.0,
    models: bytes = MODELS,
) -> type[BaseHTTPRequestHandler]:
    """Answers every request alike, apart from the list of models."""

    class Handler(BaseHTTPRequestHandler):
        seen: list[tuple[str, dict[str, str]]] = []  # noqa: RUF012  one list for the class

        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            is_list = self.path == "/v1/models"
            self.say(200 if is_list and models else 404, models if is_list else b"{}")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(seconds)
            self.say(status, body, claimed=claimed, more=headers or {})

        def say(
            self,
            code: int,
            content: bytes,
            *,
            claimed: int | None = None,
            more: dict[str, str] | None = None,
        ) -> None:
            self.seen.append((self.path, dict(self.headers)))
            self.send_response(code)
            for name, value in (more or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(claimed or len(content)))
            self.end_headers()
            try:
                self.wfile.write(content)
            except OSError:
                return  # the client has read enough
            self.close_connection = True

    return Handler


ESCAPES = b'{"detail": "\\u001b[31mred\\u001b[0m \\u202e"}'
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "http-500": ({"status": 500, "body": b"Traceback"}, "answers HTTP 500: 'Traceback'"),
    "slow": ({"seconds": 0.6}, "no whole answer"),
    "half": ({"body": b'{"choices": [', "claimed": 4000}, "ends early"),
    "not-json": ({"body": b"<html>hello</html>"}, "is not JSON"),
    "another-shape": ({"body": b'{"choices": 7}'}, "not what its API promises"),
    "no-choices": ({"body": b'{"choices": []}'}, "has no choices"),
    "deep": ({"body": b"[" * 100_000}, "is not JSON"),
    "ten-megabytes": ({"body": b"x" * 10_000_000}, "is too long"),
    "escapes": ({"status": 400, "body": ESCAPES}, "answers HTTP 400"),
    "key-refused": ({"status": 401}, "refuses access (HTTP 401)"),
    "elsewhere": (
        {"status": 307, "headers": {"Location": "http://192.0.2.1/steal?key=1"}},
        "redirect to another place refused: 'http://192.0.2.1'",
    ),
    "in-circles": ({"status": 307, "headers": {"Location": "/v1/completions"}}, "redirects"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_server_ends_with_3_and_says_why(
    folder: Path, precheck: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("PRECHECK_API_KEY", KEY)
    settings, words = BAD[name]
    kind = handler(**settings)
    with serving_with(kind) as url:
        seconds = "0.3" if name == "slow" else "60"
        ended = precheck("verify", url, folder, "--timeout", seconds, "--retries", "1", "--quiet")
    assert ended.code == ExitCode.INCOMPLETE
    assert words in ended.err
    assert "hint: " in ended.err
    assert "\x1b" not in ended.err
    assert "\u202e" not in ended.err


def test_no_server_ends_with_3(folder: Path, precheck: Callable[..., Ended]) -> None:
    ended = precheck("verify", "http://127.0.0.1:9", folder, "--retries", "0")
    assert ended.code == ExitCode.INCOMPLETE
    assert "no server at http://127.0.0.1:9" in ended.err


def test_another_model_name_is_a_usage_error_that_lists_the_names(
    folder: Path, precheck: Callable[..., Ended]
) -> None:
    with serving_with(handler()) as url:
        ended = precheck("verify", url, folder, "--served-model", "other")
    assert ended.code == ExitCode.USAGE
    assert "no model 'other' is served" in ended.err
    assert "expected tiny" in ended.err


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://host",
        "http://",
        "http://user:word@host",
        "http://h:99999",
        "file:///x",
    ],
)
def test_what_is_no_address_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        root_of(url)


def test_the_key_goes_to_the_server_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://192.0.2.1:1")
    kind = handler(307, headers={"Location": "http://127.0.0.2:1/"})
    with (
        serving_with(kind) as url,
        HttpClient(url, key=KEY, seconds=60.0, retries=0) as client,
        pytest.raises(ServerError, match="another place") as raised,
    ):
        client.post("/v1/completions", {})
    seen: Any = kind
    assert [headers["Authorization"] for _, headers in seen.seen] == [f"Bearer {KEY}"]
    assert KEY not in str(raised.value)


def test_an_error_that_passes_is_tried_again() -> None:
    kind: Any = handler(503)
    with (
        serving_with(kind) as url,
        HttpClient(url, key=None, seconds=60.0, retries=2) as client,
        pytest.raises(ServerError, match="503"),
    ):
        client.post("/v1/completions", {})
    assert len(kind.seen) == 3


def test_an_answer_is_read_up_to_its_bound() -> None:
    with (
        serving_with(handler(body=b"x" * (MOST_BYTES + 1))) as url,
        HttpClient(url, key=None, seconds=60.0, retries=0) as client,
        pytest.raises(ServerError, match="too long"),
    ):
        client.post("/v1/completions", {})


def test_the_command_shows_the_answer_writes_files_and_gates(
    folder: Path,
    tmp_path: Path,
    precheck: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    few = ("--dtype", "float32,bfloat16", "--attn", "sdpa", "--generate", 4)
    prompt = "a private prompt of mine"
    files = [word for name in ("bug.md", "all.json") for word in ("-o", tmp_path / name)]
    engine = Engine(folder=folder)
    with serving(engine) as url:
        ended = precheck(
            "verify", url, folder, *few, "--api-key-env", "A_KEY", "--prompt", prompt,
            "--require", "bfloat16", *files,
        )  # fmt: skip
        assert ended.code == ExitCode.GATE_FAILS
        assert ended.err.splitlines()[-1] == (
            "FAIL: the server behaves like float32 + sdpa, not bfloat16"
        )
        holds = precheck("verify", url, folder, *few, "--prompt", prompt, "--require", "fp32+sdpa")
        assert holds.code == ExitCode.GATE_HOLDS
    assert all(headers["Authorization"] == f"Bearer {KEY}" for _, _, headers in engine.requests[:5])
    saved = (tmp_path / "all.json").read_text(encoding="utf-8")
    assert KEY not in saved
    assert json.loads(saved)["answers"][0]["prompt"]
    report = (tmp_path / "bug.md").read_text(encoding="utf-8")
    assert report.startswith("# vllm behaves like float32 + sdpa")
    for part in ("What was compared", "Versions", "vllm 1.2.3", "float32 + sdpa is"):
        assert part in report
    assert prompt not in report
