"""The answers of engines as their APIs have them, read without trust."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from precheck.errors import ServerError
from precheck.records.outcomes.served import Place

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precheck.served.http_client import Reply
    from precheck.served.questions import Tokens

_Shape = TypeVar("_Shape")

MOST_CANDIDATES = 1000
"""Tokens told at one position that are read."""
LEAST_LOG_PROBABILITY = -1000.0
"""What is below it stands for probability 0: vLLM writes -9999, llama.cpp -3.4e38."""


class Usage(msgspec.Struct):
    """How many tokens the server counted."""

    prompt_tokens: int | None = None


class Candidate(msgspec.Struct):
    """One token and its log-probability."""

    logprob: float | None = None
    token: str = ""
    id: int | None = None


class Said(Candidate):
    """One generated token, and the likeliest in its place (chat, llama.cpp)."""

    top_logprobs: list[Candidate] | None = None


class Listed(msgspec.Struct):
    """Log-probabilities of a completion: one list a property, or as those of a chat."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    content: list[Said] | None = None


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat."""

    content: list[Said] | None = None


class Message(msgspec.Struct):
    """What a chat answered."""

    content: str | None = None


class Choice(msgspec.Struct):
    """One completion."""

    text: str | None = None
    logprobs: Listed | None = None
    prompt_logprobs: list[dict[str, Candidate] | None] | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None


class Completion(msgspec.Struct):
    """The answer of ``/v1/completions``."""

    choices: list[Choice]
    usage: Usage | None = None


class ChatChoice(msgspec.Struct):
    """One answer of a chat."""

    message: Message
    logprobs: ChatLogprobs | None = None
    token_ids: list[int] | None = None


class Chat(msgspec.Struct):
    """The answer of ``/v1/chat/completions``."""

    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] | None = None


class LlamaCompletion(msgspec.Struct):
    """The answer of llama.cpp's ``/completion``."""

    content: str
    tokens: list[int] = []
    completion_probabilities: list[Said] | None = None
    tokens_evaluated: int | None = None
    truncated: bool = False


class Model(msgspec.Struct):
    """A model that a server lists."""

    id: str
    max_model_len: int | None = None
    owned_by: str | None = None


class Models(msgspec.Struct):
    """The answer of ``/v1/models``."""

    data: list[Model]


def read(reply: Reply, shape: type[_Shape], *, where: str) -> _Shape:
    """The answer as its API promises it.

    Raises:
        ServerError: it is not JSON, or of another shape.
    """
    if reply.body is None:
        raise ServerError(
            f"answer of {where} is not JSON: {reply.text!r}",
            hint="check that the address is that of an engine with OpenAI's API",
        )
    try:
        return msgspec.convert(reply.body, shape)
    except msgspec.ValidationError as error:
        raise ServerError(
            f"answer of {where} is not what its API promises: {error}",
            hint="check that the address is that of an engine with OpenAI's API",
        ) from error


def place(token: int, told: Mapping[int, float | None]) -> Place:
    """A position, the likeliest token first."""
    # some write null for probability 0, beside numbers; where nothing is a number, all is NaN
    numbers = {each: _number(value) for each, value in told.items()}
    if numbers.get(token) is not None:
        numbers = {
            each: LEAST_LOG_PROBABILITY if value is None else value
            for each, value in numbers.items()
        }

    def rank(item: tuple[int, float | None]) -> float:
        return -math.inf if item[1] is None else -item[1]

    rows = sorted(numbers.items(), key=rank)
    rows = rows[:MOST_CANDIDATES]
    return Place(
        token=token,
        ids=tuple(each for each, _ in rows),
        log_probabilities=tuple(value for _, value in rows),
    )


def by_id(told: Mapping[str, Any], tokens: Tokens) -> dict[int, float | None]:
    """Log-probabilities by token id, of keys that are ids."""
    size = tokens.vocabulary.size
    return {
        int(key): value
        for key, value in told.items()
        if key.isdecimal() and len(key) < 10 and int(key) < size  # noqa: PLR2004  digits of an id
    }


def by_text(told: Mapping[str, float | None], tokens: Tokens) -> dict[int, float | None]:
    """Log-probabilities by token id; what stands for none, or for several, is left out."""
    found = {tokens.id_of(text): value for text, value in told.items()}
    return {token: value for token, value in found.items() if token is not None}


def of_said(said: Said, tokens: Tokens) -> Place | None:
    """The position of one generated token; None where its id is not known."""
    token = _id(said, tokens)
    if token is None:
        return None
    told = {
        each: candidate.logprob
        for candidate in (said, *(said.top_logprobs or ()))
        if (each := _id(candidate, tokens)) is not None
    }
    return place(token, told)


def _id(candidate: Candidate, tokens: Tokens) -> int | None:
    if candidate.id is not None:
        return candidate.id if tokens.vocabulary.has_all([candidate.id]) else None
    return tokens.id_of(candidate.token)


def places_of(rows: Sequence[Said], tokens: Tokens) -> tuple[tuple[Place, ...], bool]:
    """Positions up to the first token whose id is not known, and whether there is such a one."""
    found: list[Place] = []
    for row in rows:
        its_place = of_said(row, tokens)
        if its_place is None:
            return tuple(found), True
        found.append(its_place)
    return tuple(found), False


def _number(value: float | None) -> float | None:
    """A log-probability; None for NaN, and probability 0 as such."""
    if value is None or math.isnan(value):
        return None
    return max(float(value), LEAST_LOG_PROBABILITY)
