"""What a server can do is found out by asking: each API, from the richest request to the poorest.

vLLM tells log-probabilities of the prompt (``prompt_logprobs``), other engines repeat it
(``echo``); llama.cpp has an API of its own, which tells token ids; a chat takes no token ids;
``transformers serve`` refuses every request for log-probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from precheck.errors import ServerError
from precheck.records.outcomes.served import Answer, Place, Told
from precheck.served import shapes
from precheck.served.engine import LLAMA_CPP
from precheck.served.other_apis import Chats, LlamaCpp
from precheck.served.replies import check, of_text, token_ids, told_by

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.served.engine import Engine
    from precheck.served.http_client import HttpClient
    from precheck.served.questions import Question, Tokens

MOST_TOLD = (20, 5)
"""Log-probabilities to ask for: what vLLM allows by default, and OpenAI's limit."""
NOT_FOUND = frozenset({404, 405, 501})
_VLLM, _ECHO, _PLAIN = "prompt_logprobs", "echo", ""
_LADDER = (_VLLM, _ECHO, _PLAIN)


class Api(Protocol):
    """One way to ask."""

    @property
    def path(self) -> str:
        """Where requests go."""

    @property
    def takes_token_ids(self) -> bool:
        """Whether a prompt may be token ids, else it is text."""

    @property
    def num_told(self) -> int:
        """Log-probabilities that are asked for at each position."""

    @property
    def asks_chats(self) -> bool:
        """Whether a prompt is what a user says in a chat."""

    def ask(self, question: Question, *, num_tokens: int) -> Answer:
        """What the server answers, greedily.

        Raises:
            ServerError: it does not, or not as its API promises.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Completions:
    """``/v1/completions``."""

    client: HttpClient
    tokens: Tokens
    model: str
    takes_token_ids: bool
    num_told: int
    way: str
    """How log-probabilities of the prompt are asked for."""
    path: str = "/v1/completions"
    asks_chats: bool = False

    @property
    def tells_ids(self) -> bool:
        """Whether it is asked which token ids it read, as vLLM can be."""
        return self.way == _VLLM

    def body(self, question: Question, *, num_tokens: int) -> dict[str, Any]:
        """The request."""
        prompt = list(question.ids) if self.takes_token_ids else question.text
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt,
            "max_tokens": num_tokens,
            "temperature": 0,
        }
        if self.num_told:
            body["logprobs"] = self.num_told
        if self.tells_ids:
            body |= {
                "prompt_logprobs": self.num_told,
                "return_tokens_as_token_ids": True,
                "return_token_ids": True,
            }
        if self.way == _ECHO:
            body["echo"] = True
        return body

    def ask(self, question: Question, *, num_tokens: int) -> Answer:
        """What the server answers, greedily; errors as of :class:`Api`."""
        reply = self.client.post(self.path, self.body(question, num_tokens=num_tokens))
        check(reply, where=f"{self.client.url}{self.path}", model=self.model)
        completion = shapes.read(reply, shapes.Completion, where=self.path)
        if not completion.choices:
            raise ServerError(f"answer of {self.path} has no choices", hint="see the server's log")
        choice, usage = completion.choices[0], completion.usage
        text = choice.text or ""
        if self.way == _ECHO and question.text is not None:
            text = text.removeprefix(question.text)
        answer = Answer(
            name=question.name,
            prompt=question.ids,
            text=None if self.takes_token_ids else question.text,
            generated=(),
            generated_text=text,
            num_prompt_tokens=None if usage is None else usage.prompt_tokens,
            server_prompt=token_ids(choice.prompt_token_ids),
        )
        if choice.logprobs is None:
            return of_text(answer, self.tokens, token_ids(choice.token_ids))
        return self._told(answer, choice, choice.logprobs)

    def _told(self, answer: Answer, choice: shapes.Choice, listed: shapes.Listed) -> Answer:
        """With the log-probabilities."""
        if listed.content is not None:
            found, has_unknown = shapes.places_of(listed.content, self.tokens)
            return replace(
                answer,
                generated_places=found,
                generated=tuple(one.token for one in found),
                has_unknown=has_unknown,
            )
        places = [self._place(listed, index) for index in range(len(listed.tokens or ()))]
        prompt: tuple[Place, ...] = ()
        if self.way == _ECHO:
            length = answer.num_prompt_tokens or len(answer.prompt)
            before, places = places[1:length], places[length:]
            if None not in before:
                prompt = tuple(one for one in before if one is not None)
        elif choice.prompt_logprobs:
            prompt = tuple(self._prompt_places(answer, choice.prompt_logprobs))
        known = places[: places.index(None)] if None in places else places
        told = tuple(one for one in known if one is not None)
        return replace(
            answer,
            prompt_places=prompt,
            generated_places=told,
            generated=tuple(one.token for one in told),
            has_unknown=len(told) < len(places),
        )

    def _place(self, listed: shapes.Listed, index: int) -> Place | None:
        text = (listed.tokens or [])[index]
        own = _at(listed.token_logprobs, index)
        told = shapes.by_text(_at(listed.top_logprobs, index) or {}, self.tokens)
        token = self.tokens.id_of(text)
        if token is None:
            return None
        return shapes.place(token, {**told, token: own})

    def _prompt_places(
        self, answer: Answer, rows: list[dict[str, shapes.Candidate] | None]
    ) -> Iterator[Place]:
        prompt = answer.server_prompt or answer.prompt
        for token, row in zip(prompt[1:], rows[1:], strict=False):
            told = {key: value.logprob for key, value in (row or {}).items()}
            yield shapes.place(token, shapes.by_id(told, self.tokens))


def _at(values: list[Any] | None, index: int) -> Any:
    return values[index] if values is not None and index < len(values) else None


def find_api(
    client: HttpClient,
    tokens: Tokens,
    *,
    engine: Engine,
    question: Question,
    chat: Question | None,
) -> Api:
    """The API that tells most.

    Args:
        client: of the server.
        tokens: the checkpoint's tokenizer.
        engine: what the server says of itself.
        question: is asked for one token, again and again.
        chat: the same for an API of chats; None without a chat template.

    Raises:
        ServerError: no API answers.
    """
    model = engine.model
    if engine.name == LLAMA_CPP:
        return LlamaCpp(client=client, tokens=tokens, model=model)
    best, error = _best_completions(client, tokens, model=model, question=question)
    if best is not None:
        return best
    if chat is not None and (error.status in NOT_FOUND or error.status is None):
        for num_told in (*MOST_TOLD, 0):
            api = Chats(client=client, tokens=tokens, model=model, num_told=num_told)
            try:
                api.ask(chat, num_tokens=1)
            except ServerError as another:
                if another.status is None:
                    raise
                error = another
            else:
                return api
    raise error


def _best_completions(
    client: HttpClient, tokens: Tokens, *, model: str, question: Question
) -> tuple[Completions | None, ServerError]:
    """The request that tells most, or the last error."""
    best: Completions | None = None
    most, error = -1, ServerError("no API of completions", hint="check the address")
    for api in _requests(client, tokens, model=model, has_text=question.text is not None):
        try:
            told = told_by(api.ask(question, num_tokens=1))
        except ServerError as another:
            error = another
            if another.status is None or another.status in NOT_FOUND:
                if another.status is None:
                    raise
                return best, another
            continue
        rank = list(Told).index(told)
        if rank > most:
            best, most = api, rank
        if told is Told.EVERYWHERE or (api.way == _PLAIN and most >= bool(api.num_told)):
            break
    return best, error


def _requests(
    client: HttpClient, tokens: Tokens, *, model: str, has_text: bool
) -> Iterator[Completions]:
    for takes_token_ids in (True, False) if has_text else (True,):
        for num_told, ways in ((MOST_TOLD[0], _LADDER), (MOST_TOLD[1], _LADDER), (0, (_PLAIN,))):
            for way in ways:
                yield Completions(
                    client=client,
                    tokens=tokens,
                    model=model,
                    takes_token_ids=takes_token_ids,
                    num_told=num_told,
                    way=way,
                )
