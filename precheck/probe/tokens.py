"""Probes as token ids: what the checkpoint's own tokenizer makes of the prompts, in batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from precheck.errors import UsageError
from precheck.probe.batches import Batch, stack_rows
from precheck.probe.prompts import (
    BUILTIN,
    LONG,
    LONG_TOKENS,
    PADDED,
    PADDED_TOKENS,
    QUICK_ROWS,
    QUICK_TOKENS,
    ROW_TOKENS,
    Prompt,
)
from precheck.probe.residency import quiet_transformers
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.checkpoint.source import Checkpoint

MAX_BATCH_TOKENS = 1024
"""A user's prompts of one length run together up to here: activations of a batch stay small."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The tokenizer, if there is one that fits, and what token ids are allowed."""

    size: int
    tokenizer: Any = None
    problem: str | None = None
    """Why there is no tokenizer, in words."""

    def encode(self, prompt: Prompt) -> list[int] | None:
        """Token ids as the tokenizer really makes them; None where it cannot."""
        if self.tokenizer is None:
            return None
        if prompt.kind == "chat":
            if not getattr(self.tokenizer, "chat_template", None):
                return None
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt.text}],
                tokenize=False,
                add_generation_prompt=True,
            )
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        with_special = prompt.kind != "bare"
        return list(self.tokenizer(prompt.text, add_special_tokens=with_special)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str | None:
        """Text of token ids; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        text = self.tokenizer.decode(list(ids))
        return text if isinstance(text, str) else None

    @property
    def pad_id(self) -> int:
        """What fills a padded row; its value is masked, so any id does."""
        found = getattr(self.tokenizer, "pad_token_id", None)
        return found if isinstance(found, int) and 0 <= found < self.size else 0


def read_vocabulary(checkpoint: Checkpoint | None, *, size: int) -> Vocabulary:
    """The checkpoint's tokenizer, or why there is none.

    A tokenizer that fails, or that has more tokens than the model's embedding has rows, is left
    out: token ids that cover the vocabulary take its place.
    """
    if checkpoint is None:
        return Vocabulary(size=size, problem="a live module has no tokenizer")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                checkpoint.folder,
                trust_remote_code=checkpoint.trust_remote_code,
                local_files_only=True,
            )
            sample = tokenizer("Hello 1 上海")["input_ids"]
    except Exception as error:  # noqa: BLE001  a tokenizer may raise anything; the scan goes on
        return Vocabulary(size=size, problem=f"no tokenizer: {type(error).__name__}")
    if not sample:
        return Vocabulary(size=size, problem="no tokenizer: it makes no tokens of text")
    if max(sample) >= size:
        return Vocabulary(size=size, problem="the tokenizer has more tokens than the model")
    return Vocabulary(size=size, tokenizer=tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The batches of a scan and what was left out of it."""

    batches: tuple[Batch, ...]
    not_run: tuple[str, ...]

    @property
    def probes(self) -> tuple[Probe, ...]:
        """Every probe, in order."""
        return tuple(probe for batch in self.batches for probe in batch.probes)


def plan_probes(
    vocabulary: Vocabulary,
    *,
    prompts: Sequence[str | Sequence[int]] | None,
    builtin_probes: bool,
    quick: bool,
    max_context: int | None,
) -> Plan:
    """The batches: a user's prompts, the built-in ones, or token ids without a tokenizer.

    Raises:
        UsageError: a prompt that is empty, longer than the context, or needs a tokenizer.
    """
    batches: list[Batch] = []
    not_run: list[str] = []
    if prompts is not None:
        batches += _user_batches(vocabulary, prompts, max_context)
    if prompts is None or builtin_probes:
        built_in, missing = _builtin_batches(vocabulary, quick=quick, max_context=max_context)
        batches += built_in
        not_run += missing
    return Plan(batches=tuple(batches), not_run=tuple(not_run))


def _builtin_batches(
    vocabulary: Vocabulary, *, quick: bool, max_context: int | None
) -> tuple[list[Batch], list[str]]:
    limit = max_context or LONG_TOKENS
    length = min(QUICK_TOKENS if quick else ROW_TOKENS, limit)
    if vocabulary.tokenizer is None:
        rows = QUICK_ROWS if quick else len(BUILTIN) + 1
        batches = [_covering_batch(vocabulary.size, rows, length)]
        return batches, [f"text probes ({vocabulary.problem})"]
    named: list[tuple[str, str, list[int]]] = []
    not_run: list[str] = []
    for prompt in BUILTIN:
        ids = vocabulary.encode(prompt)
        if not ids:
            not_run.append(f"{prompt.name} (no chat template)")
        else:
            kind = "chat" if prompt.kind == "chat" else "text"
            named.append((prompt.name, kind, _cut_or_filled(ids, length)))
    covering = _covering_batch(vocabulary.size, 1, length)
    if quick:
        return [_batch(named[:QUICK_ROWS])], not_run
    named.append(("vocabulary", "token_ids", covering.input_ids[0].tolist()))
    batches = [_batch(named), _padded_batch(vocabulary, limit)]
    long_ids = vocabulary.encode(LONG) or []
    batches.append(_batch([(LONG.name, "text", _cut_or_filled(long_ids, min(LONG_TOKENS, limit)))]))
    return batches, not_run


def _batch(rows: list[tuple[str, str, list[int]]]) -> Batch:
    return Batch(
        probes=tuple(Probe(name=name, kind=kind, num_tokens=len(ids)) for name, kind, ids in rows),
        input_ids=stack_rows([ids for _, _, ids in rows]),
    )


def _padded_batch(vocabulary: Vocabulary, limit: int) -> Batch:
    rows = [
        _cut_or_filled(vocabulary.encode(prompt) or [0], min(length, limit))
        for prompt, length in zip(PADDED, PADDED_TOKENS, strict=True)
    ]
    longest = max(map(len, rows))
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    filled = [[vocabulary.pad_id] * (longest - len(row)) + row for row in rows]
    return Batch(
        probes=tuple(
            Probe(name=prompt.name, kind="padded", num_tokens=len(row))
            for prompt, row in zip(PADDED, rows, strict=True)
        ),
        input_ids=stack_rows(filled),
        attention_mask=stack_rows(mask),
    )


def _covering_batch(vocab_size: int, num_rows: int, length: int) -> Batch:
    """Token ids spread evenly over the whole vocabulary."""
    ids = torch.linspace(0, vocab_size - 1, num_rows * length).round().long()
    # neighbours in the vocabulary are often alike: a row takes every num_rows-th id
    rows = ids.reshape(length, num_rows).T.contiguous()
    return Batch(
        probes=tuple(
            Probe(name=f"vocabulary_{index}", kind="token_ids", num_tokens=length)
            for index in range(num_rows)
        ),
        input_ids=rows,
    )


def _cut_or_filled(ids: list[int], length: int) -> list[int]:
    """Exactly ``length`` ids: cut, or said again without the first, which may be BOS."""
    again = ids[1:] or ids
    while len(ids) < length:
        ids = ids + again
    return ids[:length]


def _user_batches(
    vocabulary: Vocabulary, prompts: Sequence[str | Sequence[int]], max_context: int | None
) -> list[Batch]:
    rows = [
        _user_row(vocabulary, prompt, index, max_context)
        for index, prompt in enumerate(prompts, start=1)
    ]
    if not rows:
        raise UsageError("no prompts given", hint="give at least one, or leave prompts out")
    by_length: dict[int, list[tuple[str, str, list[int]]]] = {}
    for row in rows:
        by_length.setdefault(len(row[2]), []).append(row)
    batches = []
    for length, group in by_length.items():
        step = max(1, MAX_BATCH_TOKENS // length)
        batches += [_batch(group[start : start + step]) for start in range(0, len(group), step)]
    return batches


def _user_row(
    vocabulary: Vocabulary, prompt: str | Sequence[int], index: int, max_context: int | None
) -> tuple[str, str, list[int]]:
    name = f"prompt_{index}"
    if isinstance(prompt, str):
        if vocabulary.tokenizer is None:
            raise UsageError(
                f"prompt {index} is text, and {vocabulary.problem}", hint="give token ids instead"
            )
        ids = vocabulary.encode(Prompt(name=name, text=prompt)) or []
        kind = "text"
    else:
        ids, kind = [int(each) for each in prompt], "token_ids"
        if any(not 0 <= each < vocabulary.size for each in ids):
            raise UsageError(
                f"prompt {index} has token ids outside 0 to {vocabulary.size - 1}",
                hint="give ids of this model's vocabulary",
            )
    if not ids:
        raise UsageError(f"prompt {index} is empty", hint="give it some text")
    if max_context is not None and len(ids) > max_context:
        raise UsageError(
            f"prompt {index} has {len(ids)} tokens (the model's context is {max_context})",
            hint="shorten it",
        )
    return name, kind, ids


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
