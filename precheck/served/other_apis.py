"""APIs besides OpenAI's completions: llama.cpp's own, which tells token ids, and chats."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from precheck.errors import ServerError
from precheck.records.outcomes.served import Answer, Place
from precheck.served import shapes
from precheck.served.replies import check, of_text, token_ids

if TYPE_CHECKING:
    from precheck.served.http_client import HttpClient
    from precheck.served.questions import Question, Tokens


@dataclass(frozen=True, kw_only=True)
class LlamaCpp:
    """``/completion`` of llama.cpp, which tells token ids."""

    client: HttpClient
    tokens: Tokens
    model: str = ""
    takes_token_ids: bool = True
    num_told: int = 20
    path: str = "/completion"
    asks_chats: bool = False

    def ask(self, question: Question, *, num_tokens: int) -> Answer:
        """What the server answers, greedily; errors as of :class:`Api`."""
        body = {
            "prompt": list(question.ids) if self.takes_token_ids else question.text,
            "n_predict": num_tokens,
            "temperature": 0,
            "repeat_penalty": 1.0,
            "n_probs": self.num_told,
            "post_sampling_probs": False,
            "return_tokens": True,
        }
        reply = self.client.post(self.path, body)
        check(reply, where=f"{self.client.url}{self.path}", model=self.model)
        completion = shapes.read(reply, shapes.LlamaCompletion, where=self.path)
        answer = Answer(
            name=question.name,
            prompt=question.ids,
            text=None if self.takes_token_ids else question.text,
            generated=(),
            generated_text=completion.content,
            num_prompt_tokens=completion.tokens_evaluated,
        )
        rows = completion.completion_probabilities or []
        if not completion.tokens or not self.tokens.vocabulary.has_all(completion.tokens):
            return of_text(answer, self.tokens, None)
        return replace(
            answer,
            generated=tuple(completion.tokens),
            generated_places=self._places(completion.tokens, rows),
        )

    def _places(self, ids: list[int], rows: list[shapes.Said]) -> tuple[Place, ...]:
        """A position for each token; none of those with a part of a character are told."""
        if not rows:
            return ()
        told = self.tokens.ends_of_characters(ids)
        if [ids[index] for index in told] != [row.id for row in rows]:
            pairs = enumerate(zip(rows, ids, strict=False))
            same = next((i for i, (row, token) in pairs if row.id != token), len(rows))
            told = list(range(min(same, len(ids))))
        by_index = {
            index: shapes.of_said(row, self.tokens) for index, row in zip(told, rows, strict=False)
        }
        return tuple(by_index.get(index) or Place(token=each) for index, each in enumerate(ids))


@dataclass(frozen=True, kw_only=True)
class Chats:
    """``/v1/chat/completions``, for a server that has nothing else."""

    client: HttpClient
    tokens: Tokens
    model: str
    num_told: int
    tells_ids: bool = False
    """Ask which token ids it made of the chat, as vLLM can."""
    takes_token_ids: bool = field(default=False, init=False)
    path: str = "/v1/chat/completions"
    asks_chats: bool = True

    def ask(self, question: Question, *, num_tokens: int) -> Answer:
        """What the server answers, greedily; errors as of :class:`Api`."""
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": question.text}],
            "max_tokens": num_tokens,
            "temperature": 0,
        }
        if self.num_told:
            body |= {"logprobs": True, "top_logprobs": self.num_told}
        if self.tells_ids:
            body["return_token_ids"] = True
        reply = self.client.post(self.path, body)
        check(reply, where=f"{self.client.url}{self.path}", model=self.model)
        chat = shapes.read(reply, shapes.Chat, where=self.path)
        if not chat.choices:
            raise ServerError(f"answer of {self.path} has no choices", hint="see the server's log")
        choice = chat.choices[0]
        rows = [] if choice.logprobs is None else choice.logprobs.content or []
        places, has_unknown = shapes.places_of(rows, self.tokens)
        answer = Answer(
            name=question.name,
            prompt=question.ids,
            text=question.text,
            generated=tuple(one.token for one in places),
            generated_text=choice.message.content or "",
            generated_places=places,
            num_prompt_tokens=None if chat.usage is None else chat.usage.prompt_tokens,
            server_prompt=token_ids(chat.prompt_token_ids),
            has_unknown=has_unknown,
        )
        return answer if rows else of_text(answer, self.tokens, token_ids(choice.token_ids))
