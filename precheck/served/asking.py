"""Asking a server: each prompt alone, all again in company, and a few as text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precheck.errors import ServerError
from precheck.records.outcomes.served import Server, Told
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.served.api import find_api
from precheck.served.questions import as_chat
from precheck.served.replies import told_by
from precheck.served.tokenization import ReadText, as_read, read_texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.served import Answer
    from precheck.records.progress import Observer
    from precheck.served.api import Api
    from precheck.served.engine import Engine
    from precheck.served.http_client import HttpClient
    from precheck.served.questions import Question, Tokens
    from precheck.served.request import VerifyRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a server answered."""

    server: Server
    answers: tuple[Answer, ...]
    """To prompts that were sent alone; ``prompt`` is what the server read, as far as it shows."""
    in_company: tuple[Answer, ...]
    read_texts: tuple[ReadText, ...]


def ask(
    client: HttpClient,
    engine: Engine,
    tokens: Tokens,
    asked_for: Sequence[Question],
    *,
    request: VerifyRequest,
    observe: Observer,
) -> Asked:
    """Everything that a server is asked.

    Raises:
        ServerError: it does not answer as its API promises.
    """
    chat = next((one for one in asked_for if one.is_chat), None)
    api = find_api(client, tokens, engine=engine, question=asked_for[0], chat=chat)
    sent = usable(api, tokens, asked_for)
    observe(Announcement(text=f"asking {client.url}{api.path}: {counted(len(sent), 'prompt')}"))
    answers = tuple(api.ask(one, num_tokens=request.num_generated) for one in sent)
    of_prompts = [ReadText.of(answer, is_chat=api.asks_chats) for answer in answers]
    return Asked(
        server=Server(
            url=client.url,
            model=engine.model,
            engine=engine.name,
            version=engine.version,
            max_context=engine.max_context,
            api=api.path,
            takes_token_ids=api.takes_token_ids,
            told=max(map(told_by, answers), key=list(Told).index),
            num_told=api.num_told,
            own_words=engine.own_words,
        ),
        answers=tuple(_as_read(answer, tokens) for answer in answers),
        in_company=_together(api, sent, tokens, request=request),
        read_texts=(*of_prompts, *read_texts(api, asked_for)),
    )


def usable(api: Api, tokens: Tokens, asked_for: Sequence[Question]) -> list[Question]:
    """Those that can be sent to an API, as what it takes.

    Raises:
        ServerError: none of them.
    """
    if api.takes_token_ids:
        return list(asked_for)
    texts = [one for one in asked_for if one.text is not None]
    if api.asks_chats:
        sent = [as_chat(one, tokens) for one in texts]
    else:
        sent = [one for one in texts if not one.is_chat]
    found = [one for one in sent if one.ids]
    if not found:
        raise ServerError(
            f"no prompt can be sent to {api.path} (expected text: it takes no token ids)",
            hint="--prompt 'a text'",
        )
    return found


def _together(
    api: Api, sent: Sequence[Question], tokens: Tokens, *, request: VerifyRequest
) -> tuple[Answer, ...]:
    """The answers to the same, several at once; none where only one may be sent at a time."""
    if request.concurrency < 2:  # noqa: PLR2004  company begins with two
        return ()
    with ThreadPoolExecutor(max_workers=request.concurrency) as pool:
        found = pool.map(lambda one: api.ask(one, num_tokens=request.num_generated), sent)
        return tuple(_as_read(answer, tokens) for answer in found)


def _as_read(answer: Answer, tokens: Tokens) -> Answer:
    """With the prompt as the server read it, and no positions that do not belong to it."""
    prompt = as_read(answer, tokens)
    fits = len(answer.prompt_places) == len(prompt) - 1
    return replace(answer, prompt=prompt, prompt_places=answer.prompt_places if fits else ())
