"""An engine in this process: OpenAI's API over a tiny model, right or with one planted fault."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import torch
import transformers

from precheck.measure.formats.parts import Storing
from precheck.measure.formats.stored_cache import new_cache
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from tests.tiny_models import BOS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LIKELIEST = 20


@dataclass(kw_only=True)
class Engine:
    """How it answers; the defaults are healthy."""

    folder: Path
    configuration: Configuration = field(
        default_factory=lambda: Configuration(dtype=Dtype.FLOAT32, attn_implementation="sdpa")
    )
    api: str = "vllm"
    """``vllm``, ``echo``, ``content`` (log-probabilities as of a chat), ``greedy`` (none),
    ``llama.cpp`` or ``chat``."""
    storing: Storing = field(default_factory=Storing)
    """Parts of the cache that are in its format."""
    prompt_reads_cache: bool = False
    """A prompt attends to what its cache stores, as in llama.cpp; else to what came before."""
    change: Callable[[torch.nn.Module], None] | None = None
    """Done to the weights."""
    num_bos: int | None = None
    """Put before every text, whatever its tokenizer does; None: as the tokenizer says."""
    process: Callable[[torch.Tensor, list[int]], torch.Tensor] | None = None
    """Done to logits ``(vocab,)`` before they are told and chosen from, with the tokens so far."""
    is_sampled: bool = False
    keeps: int | None = None
    """Most tokens of a prompt that it reads, the last ones."""
    template: str | None = None
    """Chat template in the place of the tokenizer's own."""
    is_changed_by_company: bool = False
    requests: list[tuple[str, dict[str, Any], dict[str, str]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype=getattr(torch, self.configuration.dtype),
            attn_implementation=self.configuration.attn_implementation,
        ).eval()
        if self.change is not None:
            with torch.no_grad():
                self.change(self.model)
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self.folder)
        self.tokenizer.chat_template = self.template or self.tokenizer.chat_template
        self.lock, self.counting = threading.Lock(), threading.Lock()
        self.running = 0
        self.has_company = False

    def encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids as this engine reads them."""
        ids = self.tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        if self.num_bos is not None:
            while ids and ids[0] == BOS:
                ids = ids[1:]
            ids = [BOS] * self.num_bos + ids
        return ids if self.keeps is None else ids[-self.keeps :]

    @torch.no_grad()
    def answer(self, ids: list[int], num_tokens: int) -> tuple[torch.Tensor, list[int]]:
        """Log-probabilities ``(prompt - 1 + generated, vocab)`` float64, and what it generated."""
        name = self.configuration.kv_cache_dtype
        cache = self.new_cache()
        rows: list[torch.Tensor] = []
        written: list[int] = []
        fed = torch.tensor([ids])
        generator = torch.Generator().manual_seed(len(self.requests))
        for step in range(num_tokens):
            if name is not None:
                cache.reads_stored = step > 0 or self.prompt_reads_cache
            logits = self.model(fed, past_key_values=cache, use_cache=True).logits[0].double()
            for row in logits:
                rows.append(self.told(row, ids[: len(rows) + 1] + written))
            token = self.chosen(rows[-1], generator)
            written.append(token)
            fed = torch.tensor([[token]])
            if token == self.tokenizer.eos_token_id:
                break
        return torch.stack(rows), written

    def new_cache(self) -> Any:
        """An empty cache in its format."""
        name = self.configuration.kv_cache_dtype
        if name is None:
            return transformers.DynamicCache(config=self.model.config)
        return new_cache(self.model.config, name, is_kept=True, storing=self.storing)

    def told(self, row: torch.Tensor, so_far: list[int]) -> torch.Tensor:
        """Log-probabilities as it tells them."""
        shown = row if self.process is None else self.process(row.clone(), so_far)
        if self.is_changed_by_company and self.has_company:
            shown = shown * 1.1
        return shown.log_softmax(dim=-1)

    def chosen(self, row: torch.Tensor, generator: torch.Generator) -> int:
        """The next token; NaN becomes token 0."""
        if row.isnan().any():
            return 0
        if self.is_sampled:
            return int(torch.multinomial(row.exp(), 1, generator=generator))
        return int(row.argmax())

    # The APIs.

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """``/v1/completions``."""
        ids = self.encode(body["prompt"])
        rows, written = self.answer(ids, body["max_tokens"])
        choice: dict[str, Any] = {"index": 0, "text": self.tokenizer.decode(written)}
        if body.get("logprobs"):
            echoes = bool(body.get("echo"))
            shown = ids + written if echoes else written
            of_rows = [None, *rows] if echoes else list(rows[len(ids) - 1 :])
            choice["logprobs"] = {
                "tokens": [self.written(token, body) for token in shown],
                "token_logprobs": [
                    None if row is None else number(row[token])
                    for token, row in zip(shown, of_rows, strict=False)
                ],
                "top_logprobs": [
                    None if row is None else self.likeliest(row, body) for row in of_rows
                ],
            }
            if self.api == "content":
                choice["logprobs"] = {"content": self.said(rows[len(ids) - 1 :], written, body)}
            if echoes:
                choice["text"] = self.tokenizer.decode(shown)
        if body.get("return_token_ids"):
            choice |= {"token_ids": written, "prompt_token_ids": ids}
        if body.get("prompt_logprobs"):
            choice["prompt_logprobs"] = [
                None,
                *(
                    {
                        str(token): {"logprob": number(row[token]), "decoded_token": "x"}
                        for token in {*row.nan_to_num().topk(LIKELIEST).indices.tolist(), ids[i]}
                    }
                    for i, row in enumerate(rows[: len(ids) - 1], start=1)
                ),
            ]
        return {"choices": [choice], "usage": {"prompt_tokens": len(ids)}}

    def likeliest(self, row: torch.Tensor, body: dict[str, Any]) -> dict[str, float | None]:
        """The likeliest tokens of a position."""
        top = row.nan_to_num().topk(int(body["logprobs"])).indices.tolist()
        return {self.written(token, body): number(row[token]) for token in top}

    def written(self, token: int, body: dict[str, Any]) -> str:
        """A token as the API writes it."""
        if body.get("return_tokens_as_token_ids"):
            return f"token_id:{token}"
        return str(self.tokenizer.decode([token]))

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """``/v1/chat/completions``."""
        text = self.tokenizer.apply_chat_template(
            body["messages"], tokenize=False, add_generation_prompt=True
        )
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        _, written = self.answer(ids, body["max_tokens"])
        told = {"prompt_token_ids": ids} if body.get("return_token_ids") else {}
        return {
            "choices": [{"message": {"content": self.tokenizer.decode(written)}}],
            "usage": {"prompt_tokens": len(ids)},
            **told,
        }

    def llama(self, body: dict[str, Any]) -> dict[str, Any]:
        """``/completion`` of llama.cpp."""
        ids = self.encode(body["prompt"])
        rows, written = self.answer(ids, body["n_predict"])
        return {
            "content": self.tokenizer.decode(written),
            "tokens": written,
            "tokens_evaluated": len(ids),
            "completion_probabilities": self.said(
                rows[len(ids) - 1 :], written, {"logprobs": body["n_probs"]}
            ),
        }

    def said(
        self, rows: torch.Tensor, written: list[int], body: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Generated tokens as chats and llama.cpp tell them."""
        return [
            {
                "id": token,
                "token": "x",
                "logprob": number(row[token]),
                "top_logprobs": [
                    {"id": each, "token": "x", "logprob": number(row[each])}
                    for each in row.nan_to_num().topk(body["logprobs"]).indices.tolist()
                ],
            }
            for token, row in zip(written, rows, strict=True)
        ]


def number(value: torch.Tensor) -> float | None:
    """A log-probability as JSON can say it."""
    return float(value) if value.isfinite() else (None if value.isnan() else -9999.0)


def reply_to(engine: Engine, method: str, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    is_llama, is_chat = engine.api == "llama.cpp", engine.api == "chat"
    models = {"data": [{"id": "tiny", "owned_by": engine.api, "max_model_len": 512}]}
    props = {"default_generation_settings": {"n_ctx": 512}, "build_info": "b1"}
    told: dict[str, Any] = {"/v1/models": models, "/version": {"version": "1.2.3"}}
    if is_llama:
        told["/props"] = props
    answers: dict[str, Callable[[dict[str, Any]], Any]] = {"/v1/chat/completions": engine.chat}
    if is_llama:
        answers["/completion"] = engine.llama
    if not is_chat:
        answers["/v1/completions"] = engine.completion
    if method == "GET":
        return (200, told[path]) if path in told else (404, {"detail": "Not Found"})
    if path not in answers:
        return 404, {"detail": "Not Found"}
    if path == "/v1/completions" and (status := refused(engine.api, body)):
        return status, {"detail": "unsupported"}
    if engine.api in {"echo", "content"}:
        body = {key: body[key] for key in body if not key.startswith(("prompt_", "ret"))}
    return 200, answers[path](body)


def refused(api: str, body: dict[str, Any]) -> int | None:
    """The status of a request that an engine does not take; None where it does."""
    if api == "greedy" and ("logprobs" in body or not isinstance(body["prompt"], str)):
        return 422
    return 400 if api == "content" and "echo" in body else None


@contextmanager
def serving(engine: Engine) -> Iterator[str]:
    """Its address, while it answers."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Nothing on stderr."""

        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            self.respond(json.loads(self.rfile.read(length)))

        def respond(self, body: dict[str, Any]) -> None:
            with engine.counting:
                engine.running += 1
            if engine.is_changed_by_company:
                time.sleep(0.01)  # others arrive
            with engine.lock:
                engine.has_company = engine.running > 1
                engine.requests.append((self.path, body, dict(self.headers)))
                status, value = reply_to(engine, self.command, self.path, body)
            with engine.counting:
                engine.running -= 1
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    with serving_with(Handler) as url:
        yield url


@contextmanager
def serving_with(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server with any handler."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
