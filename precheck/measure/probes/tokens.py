"""Probes as batches of token ids, made by the checkpoint's own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from precheck.errors import UnsupportedModelError
from precheck.measure.probes.batch import Batch
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
from precheck.measure.probes.context import CONTEXT, CONTEXT_PROBES
from precheck.measure.probes.rows import (
    Row,
    batch_of,
    covering_rows,
    cut_or_filled,
    in_batches,
    padded_batch,
)
from precheck.measure.probes.user_prompts import padded_together, user_batches
from precheck.records.traces import LONG_TEXT_TOKENS, ODD_START

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.measure.probes.media_batches import Processor
    from precheck.measure.probes.vocabulary import Vocabulary
    from precheck.records.prompts import Prompt
    from precheck.records.traces import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How far the built-in probes go, beyond those that every model gets."""

    context_tokens: int = 0
    """Length of one long text; 0 for none."""
    first_tokens: tuple[int, ...] = ()
    """Odd tokens, each of which begins a short text."""


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

    @property
    def longest(self) -> Batch | None:
        """The batch whose figures are told by position; None without a long text."""
        return next((batch for batch in self.batches if batch.is_by_position), None)

    def by_position(self) -> Plan:
        """The same plan, in which the figures of the longest text are told by position."""
        lengths = [
            0
            if batch.is_padded or batch.media or batch.decoder_input_ids is not None
            else batch.input_ids.shape[1]
            for batch in self.batches
        ]
        index = max(range(len(lengths)), key=lengths.__getitem__)
        if lengths[index] < LONG_TEXT_TOKENS:
            return self
        batches = list(self.batches)
        batches[index] = replace(batches[index], is_by_position=True)
        return replace(self, batches=tuple(batches))


def plan_probes(
    vocabulary: Vocabulary,
    processor: Processor,
    *,
    prompts: Sequence[Prompt] | None,
    builtin_probes: bool,
    quick: bool,
    max_context: int | None,
    reach: Reach,
    given: Sequence[Batch] = (),
) -> Plan:
    """The batches: a user's prompts, the built-in ones, or token ids without a tokenizer.

    Those of ``given`` come last, as they are.

    Raises:
        UsageError: a prompt that is empty, longer than the context, or needs a tokenizer.
        UnsupportedModelError: the model takes sounds alone, and none can be made.
    """
    batches: list[Batch] = []
    not_run: list[str] = []
    if prompts is not None and (prompts or not given):
        batches += user_batches(vocabulary, processor, prompts, max_context)
        if not builtin_probes and not quick:
            batches += padded_together(batches, pad_id=vocabulary.pad_id)
    if builtin_probes:
        if processor.takes_text:
            built_in, missing = _builtin_batches(vocabulary, quick=quick, max_context=max_context)
            batches += built_in
            not_run += missing
            batches += _odd_starts(vocabulary, reach, max_context=max_context)
        media = processor.builtin(quick=quick)
        batches += media.batches
        not_run += media.not_run
    if reach.context_tokens and processor.takes_text:
        batches.append(_context_batch(vocabulary, reach.context_tokens))
    batches += given
    if not batches:
        raise UnsupportedModelError(
            f"no probe can be built: {'; '.join(not_run)}",
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
        batches = user_batches(vocabulary, processor, prompts, max_context)
        return tuple(row for batch in batches for row in batch.rows())
    media = processor.builtin(quick=True).batches
    if not processor.takes_text:
        return media
    chat = next(prompt for prompt in BUILTIN if prompt.kind == "chat")
    for prompt in (chat, BUILTIN[0]):
        ids = _embedded_ids(vocabulary, prompt)
        if ids:
            return (batch_of([Row(prompt.name, "text", ids)]), *media)
    covering = covering_rows(vocabulary.size, 1, 16)[0]
    return (batch_of([Row("vocabulary", "token_ids", covering)]), *media)


def _builtin_batches(
    vocabulary: Vocabulary, *, quick: bool, max_context: int | None
) -> tuple[list[Batch], list[str]]:
    limit = max_context or LONG_TOKENS
    length = min(QUICK_TOKENS if quick else ROW_TOKENS, limit)
    long_length = min(LONG_TOKENS, limit)
    num_rows = QUICK_ROWS if quick else len(BUILTIN) + 1
    covering = covering_rows(vocabulary.size, num_rows, length)
    if vocabulary.tokenizer is None:
        not_run = [f"text probes ({vocabulary.problem})"]
        rows = [Row(f"vocabulary_{index}", "token_ids", ids) for index, ids in enumerate(covering)]
        padded = [ids[:count] for ids, count in zip(covering, PADDED_TOKENS, strict=False)]
        long_ids = covering_rows(vocabulary.size, 1, long_length)[0]
        long_row = Row("vocabulary_long", "token_ids", long_ids)
    else:
        _, ending = special_tokens(vocabulary)
        rows, not_run = _text_rows(vocabulary, length, ending=ending)
        rows.append(Row("vocabulary", "token_ids", covering[0]))
        texts = [_embedded_ids(vocabulary, prompt) or [0] for prompt in PADDED]
        padded = [
            cut_or_filled(ids, min(count, limit), ending=ending)
            for ids, count in zip(texts, PADDED_TOKENS, strict=True)
        ]
        long_ids = _embedded_ids(vocabulary, LONG) or [0]
        long_ids = cut_or_filled(long_ids, long_length, ending=ending)
        long_row = Row(LONG.name, "text", long_ids, is_ordinary=True)
    if quick:
        return [batch_of(rows[:QUICK_ROWS])], not_run
    kind = "token_ids" if vocabulary.tokenizer is None else "padded"
    left_padded = padded_batch(padded, pad_id=vocabulary.pad_id, kind=kind)
    return [*map(batch_of, in_batches(rows)), left_padded, batch_of([long_row])], not_run


def _odd_starts(
    vocabulary: Vocabulary, reach: Reach, *, max_context: int | None
) -> Iterator[Batch]:
    """Short texts that begin oddly."""
    before, after = special_tokens(vocabulary)
    num_tokens = len(before) + 2 + len(after)
    if reach.first_tokens and (max_context is None or num_tokens <= max_context):
        second = (_embedded_ids(vocabulary, BUILTIN[0]) or [0])[-1:]
        yield batch_of(
            [
                Row(f"first_{token}", ODD_START, [*before, token, *second, *after])
                for token in reach.first_tokens
            ]
        )


def _context_batch(vocabulary: Vocabulary, num_tokens: int) -> Batch:
    """One text of so many tokens, near the model's context."""
    ids = _embedded_ids(vocabulary, CONTEXT)
    if ids:
        _, after = special_tokens(vocabulary)
        ids = cut_or_filled(ids, num_tokens, ending=after)
        return batch_of([Row(CONTEXT.name, "text", ids, is_ordinary=True)])
    ids = covering_rows(vocabulary.size, 1, num_tokens)[0]
    return batch_of([Row(CONTEXT_PROBES[1], "token_ids", ids)])


def special_tokens(vocabulary: Vocabulary) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    text = BUILTIN[0].text
    whole = vocabulary.encode(TextPrompt(name="", text=text)) or []
    bare = vocabulary.encode(TextPrompt(name="", text=text, kind="bare")) or []
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    return [], []


def _text_rows(
    vocabulary: Vocabulary, length: int, *, ending: list[int]
) -> tuple[list[Row], list[str]]:
    """The built-in texts as rows of one length, and those that have no usable tokens."""
    rows: list[Row] = []
    not_run: list[str] = []
    for prompt in BUILTIN:
        ids = vocabulary.encode(prompt)
        if ids and not vocabulary.has_all(ids):
            not_run.append(f"{prompt.name} (it has tokens that the model has no embedding for)")
        elif ids:
            kind = "chat" if prompt.kind == "chat" else "text"
            ids = cut_or_filled(ids, length, ending=ending)
            rows.append(Row(prompt.name, kind, ids, not prompt.is_odd))
        elif prompt.kind == "chat":
            problem = vocabulary.template.problem or "there is no chat template"
            not_run.append(f"{prompt.name} ({problem})")
        else:
            not_run.append(f"{prompt.name} (the tokenizer returns no tokens for it)")
    return rows, not_run


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


def _embedded_ids(vocabulary: Vocabulary, prompt: TextPrompt) -> list[int]:
    """The tokens of a text that the model has embeddings for."""
    return [token for token in vocabulary.encode(prompt) or () if vocabulary.has_all([token])]
