"""How a server tokenizes: the same texts once more as text, and a chat as a chat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.errors import ServerError
from precheck.served.api import Completions
from precheck.served.other_apis import Chats, LlamaCpp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.served import Answer
    from precheck.served.api import Api
    from precheck.served.questions import Question, Tokens

MOST_TEXTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadText:
    """What a server made of one text."""

    name: str
    is_chat: bool
    expected: tuple[int, ...]
    """Token ids as the checkpoint's tokenizer, or its chat template, makes them."""
    num_tokens: int | None
    """As the server counted."""
    ids: tuple[int, ...] | None
    """As the server says; None where it does not."""

    @property
    def is_same(self) -> bool:
        """Whether nothing contradicts the checkpoint's tokenizer."""
        if self.ids is not None:
            return self.ids == self.expected
        return self.num_tokens in {None, len(self.expected)}

    @classmethod
    def of(cls, answer: Answer, *, is_chat: bool) -> ReadText:
        """What an answer to a text shows."""
        return cls(
            name=answer.name,
            is_chat=is_chat,
            expected=answer.prompt,
            num_tokens=answer.num_prompt_tokens,
            ids=answer.server_prompt,
        )


def read_texts(api: Api, questions: Sequence[Question]) -> tuple[ReadText, ...]:
    """Sends texts as text and looks how many tokens, and which, the server made of them."""
    found: list[ReadText] = []
    texts = [one for one in questions if one.text is not None and not one.is_chat][:MOST_TEXTS]
    chats = [one for one in questions if one.is_chat][:1]
    for question in (*texts, *chats):
        by_text = _chat(api) if question.is_chat else _text(api)
        if by_text is None:
            continue
        try:
            answer = by_text.ask(question, num_tokens=1)
        except ServerError as error:
            if error.status is None:
                raise
            continue  # it does not take text, or chats
        found.append(ReadText.of(answer, is_chat=question.is_chat))
    return tuple(found)


def _text(api: Api) -> Api | None:
    match api:
        case Completions():
            return Completions(
                client=api.client,
                tokens=api.tokens,
                model=api.model,
                takes_token_ids=False,
                num_told=api.num_told,
                way=api.way,
            )
        case LlamaCpp():
            return LlamaCpp(
                client=api.client, tokens=api.tokens, model=api.model, takes_token_ids=False
            )
        case _:
            return None


def _chat(api: Api) -> Api | None:
    match api:
        case Completions() | LlamaCpp() | Chats():
            return Chats(
                client=api.client,
                tokens=api.tokens,
                model=api.model,
                num_told=0,
                tells_ids=isinstance(api, Completions) and api.tells_ids,
            )
        case _:
            return None


def as_read(answer: Answer, tokens: Tokens) -> tuple[int, ...]:
    """The token ids that a server probably read, where it counted others than were expected.

    Its own, if it says so; else one BOS more or less, which is what servers get wrong, or the last
    ones alone, which is how engines shorten a prompt.
    """
    expected, bos = answer.prompt, tokens.bos
    if answer.server_prompt is not None and tokens.vocabulary.has_all(answer.server_prompt):
        return answer.server_prompt
    more = (answer.num_prompt_tokens or len(expected)) - len(expected)
    if more == 1 and bos is not None:
        return (bos, *expected)
    if more == -1 and expected[0] == bos:
        return expected[1:]
    return expected[-more:] if more < 0 else expected
