"""Rows of token ids, and the batches that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from precheck.measure.probes.batch import Batch, stack_rows
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


MAX_BATCH_TOKENS = 1024
"""Rows of one length run together up to this number: activations of a batch stay small."""

MAX_BATCH_ROWS = 8
"""Half of the built-in rows: two processes have equal shares, and logits of a batch stay small."""


class Row(NamedTuple):
    """A probe as token ids."""

    name: str
    kind: str
    ids: list[int]
    is_ordinary: bool = False


def batch_of(rows: list[Row]) -> Batch:
    """Rows of one length as a batch without padding."""
    return Batch(
        probes=tuple(
            Probe(
                name=row.name,
                kind=row.kind,
                num_tokens=len(row.ids),
                is_ordinary=row.is_ordinary,
            )
            for row in rows
        ),
        input_ids=stack_rows([row.ids for row in rows]),
    )


def in_batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows of one length, in parts that run together."""
    step = min(MAX_BATCH_ROWS, max(1, MAX_BATCH_TOKENS // len(rows[0].ids)))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def padded_batch(rows: list[list[int]], *, pad_id: int, kind: str) -> Batch:
    """Rows of unequal lengths, padded on the left."""
    longest = max(map(len, rows))
    return Batch(
        probes=tuple(
            Probe(
                name=f"padded_{len(ids)}",
                kind=kind,
                num_tokens=len(ids),
                is_ordinary=kind == "padded",
            )
            for ids in rows
        ),
        input_ids=stack_rows([[pad_id] * (longest - len(ids)) + ids for ids in rows]),
        attention_mask=stack_rows([[0] * (longest - len(ids)) + [1] * len(ids) for ids in rows]),
    )


def covering_rows(vocab_size: int, num_rows: int, length: int) -> list[list[int]]:
    """Token ids spread evenly over the whole vocabulary."""
    ids = torch.linspace(0, vocab_size - 1, num_rows * length, dtype=torch.float64)
    # neighbours in the vocabulary are often alike: a row takes every num_rows-th id
    rows: list[list[int]] = ids.round().long().reshape(length, num_rows).T.tolist()
    return rows


def cut_or_filled(ids: list[int], length: int, *, ending: Sequence[int] = ()) -> list[int]:
    """Exactly ``length`` ids: cut, or repeated without the first, which may be BOS.

    Ids that end with ``ending``, as the tokenizer ends every text, still do, and once.
    """
    end = list(ending)
    if not end or ids[-len(end) :] != end or len(end) >= min(len(ids), length):
        end = []
    body = ids[: len(ids) - len(end)]
    repeated = body[1:] or body
    while len(body) + len(end) < length:
        body = body + repeated
    return body[: length - len(end)] + end
