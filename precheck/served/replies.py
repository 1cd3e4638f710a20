"""What every API's answers have in common: errors, and answers without log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.errors import ServerError
from precheck.records.outcomes.served import Answer, Told

if TYPE_CHECKING:
    from precheck.served.http_client import Reply
    from precheck.served.questions import Tokens


def told_by(answer: Answer) -> Told:
    """What log-probabilities an answer has."""
    if answer.prompt_places and answer.generated_places:
        return Told.EVERYWHERE
    return Told.GENERATED if answer.generated_places else Told.NOTHING


def check(reply: Reply, *, where: str, model: str) -> None:
    """Refuses an answer that is an error.

    Raises:
        ServerError: it is one; its status tells which.
    """
    if reply.is_good:
        return
    raise ServerError(
        f"{where} answers HTTP {reply.status} for model {model!r}: {reply.text!r}",
        hint="see which models it serves: GET /v1/models; name one with --served-model NAME",
        status=reply.status,
    )


def of_text(answer: Answer, tokens: Tokens, ids: tuple[int, ...] | None) -> Answer:
    """An answer without log-probabilities: its tokens as told, or as the tokenizer makes them."""
    if ids:
        return replace(answer, generated=ids if tokens.vocabulary.has_all(ids) else ())
    # a character that the last token begins is no text yet
    text = answer.generated_text.partition("\N{REPLACEMENT CHARACTER}")[0]
    made = tokens.encode(text, with_special=False)
    return replace(answer, generated=made, is_retokenized=True)


def token_ids(ids: list[int] | None) -> tuple[int, ...] | None:
    """Token ids that an answer has; None without any."""
    return tuple(ids) if ids else None
