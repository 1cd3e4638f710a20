"""What real engines answered, recorded, is read as they meant it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precheck.measure.probes.vocabulary import Vocabulary
from precheck.records.outcomes.served import Told
from precheck.records.precision import Dtype
from precheck.served.api import Completions
from precheck.served.engine import ask_engine
from precheck.served.http_client import Reply
from precheck.served.other_apis import Chats, LlamaCpp
from precheck.served.questions import Question, Tokens
from precheck.served.replies import told_by
from precheck.served.verify import verify
from tests.served.sessions import REQUEST, answering, checkpoint

DATA = Path(__file__).parents[1] / "data" / "served"
SESSION = json.loads((DATA / "llama_cpp.json").read_text(encoding="utf-8"))


VLLM = json.loads((DATA / "vllm.json").read_text(encoding="utf-8"))


class Recorded:
    """A client that answers from a recording."""

    url = "http://127.0.0.1:1"

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told

    def get(self, path: str) -> Reply:
        return self.post(f"GET {path}", {})

    def post(self, path: str, _: dict[str, Any]) -> Reply:
        body = self.told.get(path)
        return Reply(status=404 if body is None else 200, body=body, text=str(body)[:80])


class Pieces:
    """A tokenizer that decodes the tokens of the recording."""

    bytes_of = {177: "e6", 127: "b2", 111: "a1", 18310: "e5ae9ee9"}  # noqa: RUF012

    def __init__(self) -> None:
        rows = [
            row
            for each in SESSION["completions"]
            for row in each["answer"]["completion_probabilities"]
        ]
        self.known = {row["id"]: bytes(row["bytes"]) for row in rows}
        self.known |= {token: bytes.fromhex(text) for token, text in self.bytes_of.items()}

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.known[each] for each in ids).decode(errors="replace")


def tokens() -> Tokens:
    return Tokens(Vocabulary(size=49152, tokenizer=Pieces()))


def test_llama_cpp_says_who_it_is() -> None:
    client: Any = Recorded(SESSION)
    engine = ask_engine(client, model="a/checkpoint", served_model=None)
    assert engine.name == "llama.cpp"
    assert engine.model == "smollm2-135m-instruct-f32.gguf"
    assert engine.max_context == 1024


@pytest.mark.parametrize("index", [0, 1])
def test_llama_cpp_tells_each_token_that_ends_a_character(index: int) -> None:
    recorded = SESSION["completions"][index]
    client: Any = Recorded({"/completion": recorded["answer"]})
    answer = LlamaCpp(client=client, tokens=tokens()).ask(
        Question(name="x", ids=tuple(recorded["ids"])), num_tokens=6
    )
    assert list(answer.generated) == recorded["answer"]["tokens"]
    assert answer.num_prompt_tokens == len(recorded["ids"])
    told = [place.token for place in answer.generated_places if place.is_told]
    assert told == [row["id"] for row in recorded["answer"]["completion_probabilities"]]
    for place in answer.generated_places:
        assert not place.ids or place.ids[0] == place.token  # it is greedy


def test_completions_with_log_probabilities_as_of_chats_are_read() -> None:
    recorded = SESSION["/v1/completions"]
    client: Any = Recorded({"/v1/completions": recorded})
    api = Completions(
        client=client, tokens=tokens(), model="x", takes_token_ids=True, num_told=5, way=""
    )
    answer = api.ask(Question(name="x", ids=(1, 2)), num_tokens=3)
    rows = recorded["choices"][0]["logprobs"]["content"]
    assert answer.generated == tuple(row["id"] for row in rows)
    assert answer.generated_places[0].log_probabilities[0] == rows[0]["logprob"]


def vllm() -> tuple[Any, Completions]:
    """What it answered, and the request whose answer it is."""
    client: Any = Recorded(VLLM)
    return client, Completions(
        client=client,
        tokens=tokens(),
        model="smollm2-135m",
        takes_token_ids=True,
        num_told=20,
        way="prompt_logprobs",
    )


def test_vllm_says_who_it_is() -> None:
    client, _ = vllm()
    engine = ask_engine(client, model="a/checkpoint", served_model=None)
    assert (engine.name, engine.version, engine.max_context) == ("vllm", "0.32.0", 512)
    assert engine.model == "smollm2-135m"


def test_vllm_tells_prompt_and_generated_tokens() -> None:
    _, api = vllm()
    asked = VLLM["request"]
    question = Question(name="x", ids=tuple(asked["prompt"]))
    assert api.body(question, num_tokens=asked["max_tokens"]) == asked
    answer = api.ask(question, num_tokens=asked["max_tokens"])
    told = VLLM["/v1/completions"]["choices"][0]
    assert told_by(answer) is Told.EVERYWHERE
    assert answer.server_prompt == question.ids
    assert list(answer.generated) == told["token_ids"]
    assert len(answer.prompt_places) == len(question.ids) - 1
    for place, rows in zip(answer.prompt_places, told["prompt_logprobs"][1:], strict=True):
        assert dict(zip(map(str, place.ids), place.log_probabilities, strict=True)) == {
            token: row["logprob"] for token, row in rows.items()
        }
    for place, own in zip(answer.generated_places, told["logprobs"]["token_logprobs"], strict=True):
        assert place.ids[0] == place.token  # it is greedy
        assert place.log_probabilities[0] == own
        assert len(place.ids) == 20


def test_vllm_tells_which_tokens_it_made_of_a_chat() -> None:
    client, _ = vllm()
    chats = Chats(client=client, tokens=tokens(), model="x", num_told=0, tells_ids=True)
    answer = chats.ask(Question(name="x", ids=(1,), text="Why?", is_chat=True), num_tokens=1)
    recorded = VLLM["/v1/chat/completions"]
    assert list(answer.server_prompt or ()) == recorded["prompt_token_ids"]
    assert list(answer.generated) == recorded["choices"][0]["token_ids"]


def test_transformers_serve_is_compared_by_its_tokens(tmp_path: Path) -> None:
    session = json.loads((DATA / "transformers_serve_float32.json").read_text(encoding="utf-8"))
    request = replace(REQUEST, retries=0)  # it cannot list its models
    with answering(session["exchanges"]) as url:
        served = verify(url, str(checkpoint(tmp_path)), request=request, observe=lambda _: None)
    assert served.server.told is Told.NOTHING
    assert Dtype.FLOAT32 in {one.dtype for one in served.like}
    assert "consistent with" in served.sentence
    assert [finding.code for finding in served.findings] == ["PC820"]
