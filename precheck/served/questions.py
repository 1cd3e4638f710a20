"""What a server is asked: a few short texts, as token ids and as text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from precheck.errors import UnsupportedModelError, UsageError
from precheck.measure.models.empty import bare_model
from precheck.measure.probes.builtin import BUILTIN, TextPrompt
from precheck.measure.probes.rows import covering_rows
from precheck.measure.probes.vocabulary import Vocabulary, read_vocabulary
from precheck.measure.subject.token_inputs import can_generate, max_context, vocab_size
from precheck.records.prompts import ImagePrompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.prompts import Prompt

_NUM_COVERING = 6
_COVERING_TOKENS = 24
_LONGEST_TOKEN = 64
"""Characters of a token in a report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A prompt."""

    name: str
    ids: tuple[int, ...]
    text: str | None = None
    """What the tokenizer made ``ids`` of, with what it adds; None where no text makes them."""
    is_chat: bool = False
    """``text`` is what a user says; ``ids`` are those of the chat template."""


@dataclass(frozen=True)
class Tokens:
    """The checkpoint's tokenizer, from ids to text and back."""

    vocabulary: Vocabulary

    @property
    def bos(self) -> int | None:
        """Id of the token that a text begins with; None without one."""
        token = getattr(self.vocabulary.tokenizer, "bos_token_id", None)
        return token if isinstance(token, int) else None

    @property
    def special(self) -> frozenset[int]:
        """Ids of special tokens."""
        ids = getattr(self.vocabulary.tokenizer, "all_special_ids", None) or ()
        return frozenset(ids)

    def encode(self, text: str, *, with_special: bool) -> tuple[int, ...]:
        """Token ids of a text; none where there is no tokenizer, or it fails."""
        kind = "text" if with_special else "bare"
        return tuple(self.vocabulary.encode(TextPrompt(name="", text=text, kind=kind)) or ())

    def shown(self, token: int) -> str:
        """A token as text, cut; empty without a tokenizer."""
        tokenizer = self.vocabulary.tokenizer
        if tokenizer is None or not self.vocabulary.has_all([token]):
            return ""
        return str(tokenizer.decode([token]))[:_LONGEST_TOKEN]

    def ends_of_characters(self, ids: Sequence[int]) -> list[int]:
        """Indices of tokens after which the text has no character that is incomplete."""
        tokenizer = self.vocabulary.tokenizer
        if tokenizer is None:
            return list(range(len(ids)))
        texts = (str(tokenizer.decode(list(ids[: i + 1]))) for i in range(len(ids)))
        return [i for i, text in enumerate(texts) if not text.endswith("\N{REPLACEMENT CHARACTER}")]

    def id_of(self, text: str) -> int | None:
        """The id of a token that a server wrote as text; None where none or several are."""
        written, _, number = text.partition("token_id:")
        if not written and number.isdigit():
            return int(number) if self.vocabulary.has_all([int(number)]) else None
        return self._by_text.get(text)

    @cached_property
    def _by_text(self) -> dict[str, int]:
        tokenizer = self.vocabulary.tokenizer
        if tokenizer is None:
            return {}
        size = min(self.vocabulary.size, len(tokenizer))
        texts = tokenizer.batch_decode([[token] for token in range(size)])
        seen: dict[str, int] = {}
        several: set[str] = set()
        for token, text in enumerate(texts):
            if text in seen:
                several.add(text)
            seen[text] = token
        return {text: token for text, token in seen.items() if text and text not in several}


def read_tokens(checkpoint: Checkpoint) -> tuple[Tokens, int | None]:
    """The checkpoint's tokenizer, and the longest input that the model allows.

    Raises:
        UnsupportedModelError: the model takes no token ids, or continues no text.
    """
    model = bare_model(checkpoint)
    if not can_generate(model) or getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{type(model).__name__} does not continue a text (expected a decoder that does)",
            hint="scan it without a server: precheck scan MODEL",
        )
    vocabulary = read_vocabulary(checkpoint, size=vocab_size(model))
    return Tokens(vocabulary), max_context(model)


def questions(
    tokens: Tokens, prompts: Sequence[Prompt] | None, *, most_tokens: int | None
) -> tuple[Question, ...]:
    """The user's prompts, or built-in texts of every kind that people write.

    Args:
        tokens: the tokenizer.
        prompts: the user's; None: the built-in ones.
        most_tokens: longest prompt that leaves room for an answer; None: no limit.

    Raises:
        UsageError: a prompt that cannot be sent.
    """
    if prompts is not None:
        asked = tuple(_own(tokens, prompt, i) for i, prompt in enumerate(prompts, start=1))
        for question in asked:
            if most_tokens is not None and len(question.ids) > most_tokens:
                raise UsageError(
                    f"{question.name} has {len(question.ids)} tokens (expected at most"
                    f" {most_tokens}: the model's context, without the answer)",
                    hint="shorten it, or ask for fewer tokens: --generate N",
                )
        return asked
    texts = tuple(_builtin(tokens)) or tuple(_covering(tokens))
    return tuple(one for one in texts if most_tokens is None or len(one.ids) <= most_tokens)


def as_chat(question: Question, tokens: Tokens) -> Question:
    """The same text as a user says it in a chat; without ids where there is no template."""
    if question.is_chat or question.text is None:
        return question
    prompt = TextPrompt(name=question.name, text=question.text, kind="chat")
    ids = tokens.vocabulary.encode(prompt) or ()
    return Question(name=question.name, ids=tuple(ids), text=question.text, is_chat=True)


def _own(tokens: Tokens, prompt: Prompt, index: int) -> Question:
    name = f"prompt_{index}"
    if isinstance(prompt, ImagePrompt):
        raise UsageError(f"prompt {index} has images (expected text)", hint="leave it out")
    if isinstance(prompt, str):
        question = Question(name=name, ids=tokens.encode(prompt, with_special=True), text=prompt)
        why = tokens.vocabulary.problem or "the tokenizer makes no tokens of it"
    else:
        question, why = Question(name=name, ids=tuple(prompt)), "it is empty"
    if not question.ids or not tokens.vocabulary.has_all(question.ids):
        raise UsageError(
            f"prompt {index} cannot be sent: {why if not question.ids else 'unknown token ids'}",
            hint="pass text, or ids of this model's vocabulary",
        )
    return question


def _builtin(tokens: Tokens) -> Iterator[Question]:
    """Ordinary texts, as the tokenizer really makes them; then a chat."""
    for prompt in sorted(BUILTIN, key=lambda prompt: prompt.kind == "chat"):
        if prompt.is_odd:
            continue
        ids = tokens.vocabulary.encode(prompt)
        if ids and tokens.vocabulary.has_all(ids):
            yield Question(
                name=prompt.name, ids=tuple(ids), text=prompt.text, is_chat=prompt.kind == "chat"
            )


def _covering(tokens: Tokens) -> Iterator[Question]:
    rows = covering_rows(tokens.vocabulary.size, _NUM_COVERING, _COVERING_TOKENS)
    for index, ids in enumerate(rows):
        yield Question(name=f"vocabulary_{index}", ids=tuple(ids))
