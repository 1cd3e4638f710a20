"""Which token ids are a text: decoded and tokenised again they are the same ids."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from precheck.checkpoint.quiet import quiet_transformers
from precheck.measure.probes.builtin import TextPrompt
from precheck.measure.probes.tokens import special_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.measure.probes.vocabulary import Vocabulary

_UNUSED = re.compile(
    r"^[<\[]?\|?(unused|reserved|extra_id|pad|mask)[\w\s.-]*\|?[>\]]?$", re.IGNORECASE
)
"""Names of tokens that no training text had: ``<unused12>``, ``<|reserved_special_token_3|>``."""
_UNREADABLE = "\N{REPLACEMENT CHARACTER}"

Ids = tuple[int, ...]


@dataclass(slots=True, eq=False)
class TextSpace:
    """The prompts that a model can be given as text, and how they become token ids.

    Args:
        vocabulary: the tokenizer, if there is one, and how many ids there are.
        max_context: tokens; None: no limit is known.
    """

    vocabulary: Vocabulary
    max_context: int | None
    before: Ids = field(init=False)
    """What the tokenizer puts before every text."""
    after: Ids = field(init=False)
    tokens: list[int] = field(init=False)
    """Ids that are a text of their own; all ids without a tokenizer."""
    others: list[int] = field(init=False)
    """The other ids of the vocabulary: special, unused, or parts of characters."""
    _special: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        before, after = special_tokens(self.vocabulary)
        self.before, self.after = tuple(before), tuple(after)
        tokenizer, everything = self.vocabulary.tokenizer, range(self.vocabulary.size)
        self._special = frozenset()
        if tokenizer is None:
            self.tokens, self.others = list(everything), []
            return
        names = tokenizer.convert_ids_to_tokens(list(everything))
        self._special = frozenset(tokenizer.all_special_ids) | {
            token for token, name in enumerate(names) if name is None or _UNUSED.match(str(name))
        }
        cores = [(token,) for token in everything]
        self.tokens = [core[0] for core, text in zip(cores, self.texts(cores), strict=True) if text]
        plain = set(self.tokens)
        self.others = [token for token in everything if token not in plain]

    @property
    def has_text(self) -> bool:
        """Whether there is a tokenizer."""
        return self.vocabulary.tokenizer is not None

    @property
    def longest(self) -> int | None:
        """The longest core that the context allows."""
        if self.max_context is None:
            return None
        return self.max_context - len(self.before) - len(self.after)

    def wrapped(self, core: Sequence[int]) -> Ids:
        """The ids that the model gets for a core, the part that a user writes."""
        return (*self.before, *core, *self.after)

    def core(self, ids: Sequence[int]) -> Ids | None:
        """The part of ids that a user writes; None if they are not wrapped as texts are."""
        start, end = len(self.before), len(ids) - len(self.after)
        core = tuple(ids[start:end])
        return core if self.wrapped(core) == tuple(ids) else None

    def texts(self, cores: Sequence[Ids]) -> list[str | None]:
        """The text of each core; None where it is no text that becomes the same ids again."""
        tokenizer = self.vocabulary.tokenizer
        found: list[str | None] = [None] * len(cores)
        if tokenizer is None or not cores:
            return found
        plain = [
            index
            for index, core in enumerate(cores)
            if core and not self._special.intersection(core) and self.vocabulary.has_all(core)
        ]
        if not plain:
            return found
        with quiet_transformers():
            texts = [
                tokenizer.decode(cores[index], clean_up_tokenization_spaces=False)
                for index in plain
            ]
            again = tokenizer(texts, add_special_tokens=True)["input_ids"]
        for index, text, ids in zip(plain, texts, again, strict=True):
            if tuple(ids) == self.wrapped(cores[index]) and text and _UNREADABLE not in text:
                found[index] = text
        return found

    def texts_of(self, inputs: Sequence[Ids]) -> list[str | None]:
        """The same for ids with what the tokenizer puts around a text."""
        return self.texts([self.core(ids) or () for ids in inputs])

    def text_of(self, ids: Ids) -> str | None:
        """The text of one input; None where it is none."""
        return self.texts_of([ids])[0]

    def encoded(self, text: str, *, kind: str = "text") -> Ids | None:
        """The ids of a text as the tokenizer makes them; None if the model cannot take them."""
        ids = self.vocabulary.encode(TextPrompt(name="", text=text, kind=kind)) or ()
        fits = self.max_context is None or len(ids) <= self.max_context
        return tuple(ids) if ids and fits and self.vocabulary.has_all(ids) else None
