"""The checkpoint's own tokenizer, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from precheck.checkpoint.quiet import quiet_transformers
from precheck.measure.probes.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.checkpoint.naming.location import Description
    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.probes.builtin import TextPrompt


TOKENIZER_FILES = ("tokenizer*", "tokenization_*", "vocab*", "merges.txt", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokenizer, if there is one that fits, and how many token ids there are."""

    size: int
    tokenizer: Any = None
    problem: str | None = None
    """Why there is no tokenizer, in words."""
    template: ChatTemplate = field(default_factory=ChatTemplate)

    def encode(self, prompt: TextPrompt) -> list[int] | None:
        """Token ids as the tokenizer really makes them; None where it cannot."""
        if self.tokenizer is None:
            return None
        try:
            with quiet_transformers():  # it warns of texts longer than the context it assumes
                return self._encode(prompt)
        except Exception:  # noqa: BLE001  a tokenizer or a template may raise anything
            return None

    def _encode(self, prompt: TextPrompt) -> list[int] | None:
        if prompt.kind != "chat":
            with_special = prompt.kind != "bare"
            return list(self.tokenizer(prompt.text, add_special_tokens=with_special)["input_ids"])
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        text = self.template.render(self.tokenizer, [{"role": "user", "content": prompt.text}])
        if text is None:
            return None
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def has_all(self, ids: Sequence[int]) -> bool:
        """Whether the model has an embedding for every id."""
        return all(0 <= token < self.size for token in ids)

    def decode(self, ids: Sequence[int]) -> str | None:
        """Text of token ids as an answer shows it; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        if not isinstance(text, str):
            return None
        first = self.tokenizer.decode(list(ids[:1]))
        return text or f"an empty answer ({first} is a special token, which is not shown)"

    @property
    def pad_id(self) -> int:
        """Fills padded rows; it is masked, so any id will do."""
        pad_id = getattr(self.tokenizer, "pad_token_id", None)
        return pad_id if isinstance(pad_id, int) and 0 <= pad_id < self.size else 0


def read_vocabulary(
    checkpoint: Checkpoint | Description | None, *, size: int, tokenizer: Any = None
) -> Vocabulary:
    """The checkpoint's tokenizer, or the one that came with a live module, or why there is none.

    A tokenizer that fails, or that has more tokens than the model's embedding has rows, is not
    used: probes are token ids that cover the vocabulary instead.
    """
    if checkpoint is None and tokenizer is None:
        return Vocabulary(
            size=size, problem="a live module has no tokenizer: scan(model, tokenizer=...)"
        )
    absent = None if checkpoint is None else _absent(checkpoint)
    if absent is not None:
        return Vocabulary(size=size, problem=absent)
    gguf = None if checkpoint is None else checkpoint.gguf
    try:
        with quiet_transformers():
            if checkpoint is not None:
                tokenizer = AutoTokenizer.from_pretrained(
                    checkpoint.folder,
                    trust_remote_code=checkpoint.trust_remote_code,
                    local_files_only=True,
                    gguf_file=None if gguf is None else gguf.file.name,
                )
            sample = tokenizer("Hello 1 上海")["input_ids"]
    except Exception as error:  # noqa: BLE001  a tokenizer may raise anything; the scan goes on
        return Vocabulary(
            size=size, problem=f"the tokenizer cannot be loaded: {type(error).__name__}"
        )
    if not sample:
        return Vocabulary(size=size, problem="no usable tokenizer: it returns no tokens for text")
    if max(sample) >= size:
        return Vocabulary(size=size, problem="the tokenizer has more tokens than the model")
    return Vocabulary(size=size, tokenizer=tokenizer)


def _absent(checkpoint: Checkpoint | Description) -> str | None:
    """That there is no tokenizer: transformers would make an empty one from the config alone."""
    if checkpoint.gguf is not None:
        return None if checkpoint.gguf.has_tokenizer else "no tokenizer in the file"
    has_files = any(any(checkpoint.folder.glob(pattern)) for pattern in TOKENIZER_FILES)
    return None if has_files else "no tokenizer files"
