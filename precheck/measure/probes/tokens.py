"""Probes as batches of token ids, made by the checkpoint's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.errors import UnsupportedModelError, UsageError
from precheck.measure.probes.batch import Batch, stack_rows
from precheck.measure.probes.builtin import (
    BUILTIN,
    LONG,
    LONG_TOKENS,
    PADDED,
    PADDED_TOKENS,
    QUICK_ROWS,
    QUICK_TOKENS,
    ROW_TOKENS,
    TextPrompt,
)
from precheck.records.prompts import ImagePrompt
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.measure.probes.media_batches import Processor
    from precheck.measure.probes.vocabulary import Vocabulary
    from precheck.records.prompts import Prompt


MAX_BATCH_TOKENS = 1024
"""Rows of one length run together up to this number: activations of a batch stay small."""

MAX_BATCH_ROWS = 8
"""Half of the built-in rows: two processes have equal shares, and logits of a batch stay small."""


class _Row(NamedTuple):
    """A probe as token ids."""

    name: str
    kind: str
    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The batches of a scan and the probes that were left out, with the reason."""

    batches: tuple[Batch, ...]
    not_run: tuple[str, ...]

    @property
    def num_tokens(self) -> int:
        """Real tokens of all probes."""
        return sum(batch.num_real_tokens for batch in self.batches)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe, in order."""
        return tuple(probe for batch in self.batches for probe in batch.probes)


def plan_probes(
    vocabulary: Vocabulary,
    processor: Processor,
    *,
    prompts: Sequence[Prompt] | None,
    builtin_probes: bool,
    quick: bool,
    max_context: int | None,
) -> Plan:
    """The batches: a user's prompts, the built-in ones, or token ids without a tokenizer.

    Raises:
        UsageError: a prompt that is empty, longer than the context, or needs a tokenizer.
        UnsupportedModelError: the model takes sounds alone, and none can be made.
    """
    batches: list[Batch] = []
    not_run: list[str] = []
    if prompts is not None:
        batches += _user_batches(vocabulary, processor, prompts, max_context)
    if prompts is None or builtin_probes:
        if processor.takes_text:
            built_in, missing = _builtin_batches(vocabulary, quick=quick, max_context=max_context)
            batches += built_in
            not_run += missing
        media = processor.builtin(quick=quick)
        batches += media.batches
        not_run += media.not_run
    if not batches:
        raise UnsupportedModelError(
            f"no probe can be made: {'; '.join(not_run)}",
            hint="copy the processor's files into the folder",
        )
    return Plan(batches=tuple(batches), not_run=tuple(not_run))


def generation_batches(
    vocabulary: Vocabulary,
    processor: Processor,
    *,
    prompts: Sequence[Prompt] | None,
    max_context: int | None,
) -> tuple[Batch, ...]:
    """The prompts to generate from, one a batch: the user's, or a built-in one."""
    if prompts is not None:
        batches = _user_batches(vocabulary, processor, prompts, max_context)
        return tuple(row for batch in batches for row in _rows_of(batch))
    media = processor.builtin(quick=True).batches
    if not processor.takes_text:
        return media
    chat = next(prompt for prompt in BUILTIN if prompt.kind == "chat")
    for prompt in (chat, BUILTIN[0]):
        ids = _embedded_ids(vocabulary, prompt)
        if ids:
            return (_batch([_Row(prompt.name, "text", ids)]), *media)
    covering = _covering_rows(vocabulary.size, 1, 16)[0]
    return (_batch([_Row("vocabulary", "token_ids", covering)]), *media)


def _rows_of(batch: Batch) -> Iterator[Batch]:
    """Each row of a batch without padding, as a batch."""
    for row, probe in enumerate(batch.probes):
        yield Batch(probes=(probe,), input_ids=batch.input_ids[row : row + 1], media=batch.media)


def _builtin_batches(
    vocabulary: Vocabulary, *, quick: bool, max_context: int | None
) -> tuple[list[Batch], list[str]]:
    limit = max_context or LONG_TOKENS
    length = min(QUICK_TOKENS if quick else ROW_TOKENS, limit)
    long_length = min(LONG_TOKENS, limit)
    num_rows = QUICK_ROWS if quick else len(BUILTIN) + 1
    covering = _covering_rows(vocabulary.size, num_rows, length)
    if vocabulary.tokenizer is None:
        not_run = [f"text probes ({vocabulary.problem})"]
        rows = [_Row(f"vocabulary_{index}", "token_ids", ids) for index, ids in enumerate(covering)]
        padded = [ids[:count] for ids, count in zip(covering, PADDED_TOKENS, strict=False)]
        long_ids = _covering_rows(vocabulary.size, 1, long_length)[0]
        long_row = _Row("vocabulary_long", "token_ids", long_ids)
    else:
        rows, not_run = _text_rows(vocabulary, length)
        rows.append(_Row("vocabulary", "token_ids", covering[0]))
        texts = [_embedded_ids(vocabulary, prompt) or [0] for prompt in PADDED]
        padded = [
            _cut_or_filled(ids, min(count, limit))
            for ids, count in zip(texts, PADDED_TOKENS, strict=True)
        ]
        long_ids = _cut_or_filled(_embedded_ids(vocabulary, LONG) or [0], long_length)
        long_row = _Row(LONG.name, "text", long_ids)
    if quick:
        return [_batch(rows[:QUICK_ROWS])], not_run
    kind = "token_ids" if vocabulary.tokenizer is None else "padded"
    left_padded = _padded_batch(padded, pad_id=vocabulary.pad_id, kind=kind)
    return [*map(_batch, _in_batches(rows)), left_padded, _batch([long_row])], not_run


def _text_rows(vocabulary: Vocabulary, length: int) -> tuple[list[_Row], list[str]]:
    """The built-in texts as rows of one length, and those that have no usable tokens."""
    rows: list[_Row] = []
    not_run: list[str] = []
    for prompt in BUILTIN:
        ids = vocabulary.encode(prompt)
        if ids and not vocabulary.has_all(ids):
            not_run.append(f"{prompt.name} (it has tokens that the model has no embedding for)")
        elif ids:
            kind = "chat" if prompt.kind == "chat" else "text"
            rows.append(_Row(prompt.name, kind, _cut_or_filled(ids, length)))
        elif prompt.kind == "chat":
            not_run.append(f"{prompt.name} (the chat template is absent, or fails)")
        else:
            not_run.append(f"{prompt.name} (the tokenizer makes no tokens of it)")
    return rows, not_run


def _embedded_ids(vocabulary: Vocabulary, prompt: TextPrompt) -> list[int]:
    """The tokens of a text that the model has embeddings for."""
    return [token for token in vocabulary.encode(prompt) or () if vocabulary.has_all([token])]


def _batch(rows: list[_Row]) -> Batch:
    return Batch(
        probes=tuple(Probe(name=row.name, kind=row.kind, num_tokens=len(row.ids)) for row in rows),
        input_ids=stack_rows([row.ids for row in rows]),
    )


def _in_batches(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of one length, in parts that run together."""
    step = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_TOKENS // len(rows[0].ids)))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _padded_batch(rows: list[list[int]], *, pad_id: int, kind: str) -> Batch:
    """Rows of unequal lengths, padded on the left."""
    longest = max(map(len, rows))
    return Batch(
        probes=tuple(
            Probe(name=f"padded_{length}", kind=kind, num_tokens=len(ids))
            for length, ids in zip(PADDED_TOKENS, rows, strict=False)
        ),
        input_ids=stack_rows([[pad_id] * (longest - len(ids)) + ids for ids in rows]),
        attention_mask=stack_rows([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    )


def _covering_rows(vocab_size: int, num_rows: int, length: int) -> list[list[int]]:
    """Token ids spread evenly over the whole vocabulary."""
    ids = torch.linspace(0, vocab_size - 1, num_rows * length, dtype=torch.float64)
    # neighbours in the vocabulary are often alike: a row takes every num_rows-th id
    rows: list[list[int]] = ids.round().long().reshape(length, num_rows).T.tolist()
    return rows


def _cut_or_filled(ids: list[int], length: int) -> list[int]:
    """Exactly ``length`` ids: cut, or repeated without the first, which may be BOS."""
    repeated = ids[1:] or ids
    while len(ids) < length:
        ids = ids + repeated
    return ids[:length]


def _user_batches(
    vocabulary: Vocabulary,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_context: int | None,
) -> list[Batch]:
    rows = [
        _user_row(vocabulary, prompt, index, max_context)
        for index, prompt in enumerate(prompts, start=1)
        if not isinstance(prompt, ImagePrompt)
    ]
    with_images = [
        processor.of_user(prompt, f"prompt_{index}")
        for index, prompt in enumerate(prompts, start=1)
        if isinstance(prompt, ImagePrompt)
    ]
    if not rows and not with_images:
        raise UsageError("no prompts given", hint="give at least one, or leave prompts out")
    by_length: dict[int, list[_Row]] = {}
    for row in rows:
        by_length.setdefault(len(row.ids), []).append(row)
    batches: list[Batch] = []
    for group in by_length.values():
        batches += map(_batch, _in_batches(group))
    return [
        replace(batch, probes=tuple(replace(probe, is_own=True) for probe in batch.probes))
        for batch in batches + with_images
    ]


def _user_row(
    vocabulary: Vocabulary, prompt: str | Sequence[int], index: int, max_context: int | None
) -> _Row:
    name = f"prompt_{index}"
    if isinstance(prompt, str):
        if vocabulary.tokenizer is None:
            raise UsageError(
                f"prompt {index} is text, and {vocabulary.problem}",
                hint='give token ids: --prompts FILE.jsonl with {"token_ids": [...]}',
            )
        ids = vocabulary.encode(TextPrompt(name=name, text=prompt)) or []
        kind = "text"
    else:
        ids, kind = [int(token) for token in prompt], "token_ids"
    if not vocabulary.has_all(ids):
        raise UsageError(
            f"prompt {index} has token ids outside 0 to {vocabulary.size - 1}",
            hint="give text or ids of this model's vocabulary",
        )
    if not ids:
        raise UsageError(f"prompt {index} is empty", hint="give it some text")
    if max_context is not None and len(ids) > max_context:
        raise UsageError(
            f"prompt {index} has {len(ids)} tokens (the model's context is {max_context})",
            hint="shorten it",
        )
    return _Row(name, kind, ids)


def with_decoder_input(batch: Batch, *, start_id: int) -> Batch:
    """The batch of an encoder-decoder model: the target is the start of the input, shifted.

    It is shorter than the input, so that shapes tell the two apart.
    """
    length = max(1, batch.input_ids.shape[1] // 2)
    source = batch.input_ids[:, -length:]
    start = torch.full_like(source[:, :1], start_id)
    return Batch(
        probes=batch.probes,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        decoder_input_ids=torch.cat([start, source[:, :-1]], dim=1),
    )
