"""What engines answered about a tiny model, word for word, and a server that answers so again."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from precheck.records.precision import Dtype
from precheck.served.request import VerifyRequest
from tests.served.engines import serving_with
from tests.tiny_models import save_checkpoint, tiny_config, tiny_of

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

REQUEST = VerifyRequest(
    dtypes=tuple(Dtype),
    attn_implementations=("sdpa",),
    prompts=("The capital of France is", "Why does my model"),
    num_generated=6,
    concurrency=2,
    seconds=300.0,
)
"""What was asked when they were recorded."""


def checkpoint(folder: Path) -> Path:
    """The folder, holding the model that was served: heads of 32, the least that vLLM takes."""
    config: Any = tiny_config("llama", num_layers=2)
    config.head_dim = 32
    return save_checkpoint(tiny_of(config), folder, tokenizer=True)


def key(method: str, path: str, body: dict[str, Any]) -> str:
    """One request, whatever the model is called."""
    asked = {name: value for name, value in body.items() if name != "model"}
    return f"{method} {path} {json.dumps(asked, sort_keys=True)}"


def answering(exchanges: dict[str, Any]) -> AbstractContextManager[str]:
    """The address of a server that answers as recorded, while it does; HTTP 599 to all else."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def respond(self, body: dict[str, Any]) -> None:
            status, value = exchanges.get(key(self.command, self.path, body), (599, None))
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    return serving_with(Handler)
