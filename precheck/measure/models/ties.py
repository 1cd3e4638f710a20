"""Parameters that a config ties, and their copies in a checkpoint that stores both.

Transformers ties two parameters only where the file holds one of them, or both with the same
values. An engine may tie whatever the config says, and then one of the copies is never read.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from precheck.checkpoint.shards import Span
from precheck.checkpoint.triage.small import sampled_rows
from precheck.measure.models.conversion import find_conversions
from precheck.measure.models.split_head import parts_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from precheck.checkpoint.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTwice:
    """Two parameters that the config ties, and that are both stored."""

    name: str
    source: str
    """The parameter that takes the place of ``name`` where they are tied."""
    stored_name: str
    stored_source: str
    is_equal: bool
    """Whether both hold the same numbers, as far as they were compared."""


def stored_twice(
    model: nn.Module, stored: Weights, tied: Mapping[str, str], *, is_sampled: bool = False
) -> tuple[StoredTwice, ...]:
    """Tied parameters of which the checkpoint stores both; of each pair the values are compared.

    Args:
        model: with or without its weights.
        stored: the checkpoint's tensors.
        tied: the source of each tied parameter.
        is_sampled: compare some rows only, so that equal means that none of those differs.
    """
    sources = _sources(model, stored, is_sampled=is_sampled) if tied else {}
    return tuple(
        StoredTwice(
            name=name,
            source=source,
            stored_name=sources[name],
            stored_source=sources[source],
            is_equal=are_equal(stored, sources[name], sources[source], is_sampled=is_sampled),
        )
        for name, source in tied.items()
        if name in sources and source in sources and sources[name] != sources[source]
    )


def compared_rows(model: nn.Module, stored: Weights) -> dict[str, tuple[Span, ...]]:
    """The parts of stored tensors that ``stored_twice`` compares where it samples them."""
    tied = tied_parameters(model)
    sources = _sources(model, stored, is_sampled=True) if tied else {}
    names = {
        sources[name]
        for pair in tied.items()
        if pair[0] in sources and pair[1] in sources and len({sources[n] for n in pair}) > 1
        for name in pair
    }
    return {name: tuple(_row_spans(stored, name)) for name in names if stored.shape(name)}


def _row_spans(stored: Weights, name: str) -> Iterator[Span]:
    num_rows = stored.shape(name)[0]
    size = stored.nbytes(name) // num_rows if num_rows else 0
    return (Span(row * size, (row + 1) * size) for row in sampled_rows(num_rows))


def _sources(model: nn.Module, stored: Weights, *, is_sampled: bool) -> dict[str, str]:
    """The stored tensor that a parameter is, where it is not made of several.

    Those that are decoded are left out where rows are sampled: they are decoded as a whole.
    """
    return {
        conversion.target: conversion.sources[0]
        for conversion in find_conversions(model, stored)
        if conversion.converter is None
        if not (is_sampled and conversion.sources[0] in stored.decoded_from)
    }


def tied_parameters(model: nn.Module) -> dict[str, str]:
    """The parameters that transformers ties, each with its source."""
    find = getattr(model, "get_expanded_tied_weights_keys", None)
    tied: dict[str, str] = {} if find is None else find(all_submodels=True)
    return tied


def declared_ties(model: nn.Module) -> dict[str, str]:
    """The parameters that are tied as any config of the model says, each with its source.

    A model of several parts has a config for each. Transformers asks that of the class, an engine
    that of the language model, and a checkpoint may say it in either.
    """
    with _all_tied(model):
        tied = tied_parameters(model)
    shapes = {name: p.shape for name, p in model.named_parameters(remove_duplicate=False)}
    return {
        name: source
        for name, source in tied.items()
        if name in shapes and source in shapes and shapes[name] == shapes[source]
    }


def tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Makes one parameter of each pair, as an engine does that goes by the config."""
    for name, source in tied.items():
        holder, _, key = name.rpartition(".")
        setattr(model.get_submodule(holder), key, model.get_parameter(source))


@contextmanager
def _all_tied(model: nn.Module) -> Iterator[None]:
    """Lets every config say what one of them says."""
    configs = list(_configs(getattr(model, "config", None)))
    before = [getattr(config, "tie_word_embeddings", None) for config in configs]
    if any(before):
        for config in configs:
            config.tie_word_embeddings = True
    try:
        yield
    finally:
        for config, value in zip(configs, before, strict=True):
            config.tie_word_embeddings = value


def _configs(config: Any) -> Iterator[Any]:
    """A config and those inside it that say whether embeddings are tied."""
    if not isinstance(config, PreTrainedConfig):
        return
    if hasattr(config, "tie_word_embeddings"):
        yield config
    for part in list(vars(config).values()):
        yield from _configs(part)


def are_equal(stored: Weights, name: str, other: str, *, is_sampled: bool = False) -> bool:
    """Whether two stored tensors hold the same numbers, in whatever dtypes.

    Args:
        stored: the checkpoint's tensors.
        name: of one of them.
        other: of the other one.
        is_sampled: compare some rows only.
    """
    shape = stored.shape(name)
    if name == other or not shape:
        return True
    if shape != stored.shape(other):
        return False
    row_elements = math.prod(shape[1:])
    if not row_elements:
        return True
    parts: Iterable[slice] = parts_of(shape[0], row_elements)
    if is_sampled:
        parts = (slice(row, row + 1) for row in sampled_rows(shape[0]))
    for rows in parts:
        part, other_part = (_rows(stored, each, rows).float() for each in (name, other))
        if not torch.allclose(part, other_part, rtol=0.0, atol=0.0, equal_nan=True):
            return False
    return True


def _rows(stored: Weights, name: str, rows: slice) -> Tensor:
    num_bytes = stored.nbytes(name) // stored.shape(name)[0] * (rows.stop - rows.start)
    return stored.read_rows_into(name, rows, torch.empty(num_bytes, dtype=torch.uint8))
