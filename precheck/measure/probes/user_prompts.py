"""The prompts of a user as batches."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.errors import UsageError
from precheck.measure.probes.builtin import TextPrompt
from precheck.measure.probes.rows import Row, batch_of, in_batches, padded_batch
from precheck.records.prompts import ImagePrompt

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.measure.probes.batch import Batch
    from precheck.measure.probes.media_batches import Processor
    from precheck.measure.probes.vocabulary import Vocabulary
    from precheck.records.prompts import Prompt


PADDED_ROWS = 4
MAX_PADDED_TOKENS = 32
"""Of a user's prompts that are padded together: longer rows cost more, and no more is padded."""


def user_batches(
    vocabulary: Vocabulary,
    processor: Processor,
    prompts: Sequence[Prompt],
    max_context: int | None,
) -> list[Batch]:
    """Prompts of one length together, never padded; one with images alone.

    Raises:
        UsageError: a prompt that is empty, longer than the context, or needs a tokenizer.
    """
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
        raise UsageError("no prompts given", hint="pass at least one, or omit prompts")
    by_length: dict[int, list[Row]] = {}
    for row in rows:
        by_length.setdefault(len(row.ids), []).append(row)
    batches: list[Batch] = []
    for group in by_length.values():
        batches += map(batch_of, in_batches(group))
    return [_own(batch) for batch in batches + with_images]


def _own(batch: Batch) -> Batch:
    """The batch as the user's: what is generated after it may be private."""
    return replace(batch, probes=tuple(replace(probe, is_own=True) for probe in batch.probes))


def _user_row(
    vocabulary: Vocabulary, prompt: str | Sequence[int], index: int, max_context: int | None
) -> Row:
    name = f"prompt_{index}"
    if isinstance(prompt, str):
        if vocabulary.tokenizer is None:
            raise UsageError(
                f"prompt {index} is text, but {vocabulary.problem}",
                hint='pass token ids: --prompts FILE.jsonl with {"token_ids": [...]}',
            )
        ids = vocabulary.encode(TextPrompt(name=name, text=prompt)) or []
        kind = "text"
    else:
        ids, kind = [int(token) for token in prompt], "token_ids"
    if not vocabulary.has_all(ids):
        raise UsageError(
            f"prompt {index} has token ids outside 0 to {vocabulary.size - 1}",
            hint="pass text, or ids of this model's vocabulary",
        )
    if not ids:
        raise UsageError(f"prompt {index} is empty", hint="write some text")
    if max_context is not None and len(ids) > max_context:
        raise UsageError(
            f"prompt {index} has {len(ids)} tokens (the model's context is {max_context})",
            hint="shorten it",
        )
    return Row(name, kind, ids)


def padded_together(batches: list[Batch], *, pad_id: int) -> Iterator[Batch]:
    """Some of a user's prompts as one left-padded batch, as a server would batch them.

    Where all are of one length, a shorter row is the beginning of the first.
    """
    rows = [
        batch.input_ids[row].tolist()
        for batch in batches
        if not batch.media
        for row in range(len(batch.probes))
    ]
    by_length = {len(ids): ids for ids in (ids[:MAX_PADDED_TOKENS] for ids in rows)}
    padded = [by_length[length] for length in sorted(by_length)[:PADDED_ROWS]]
    if len(padded) == 1:
        padded.insert(0, padded[0][: len(padded[0]) // 2])
    if padded and padded[0]:
        yield padded_batch(padded, pad_id=pad_id, kind="padded")
