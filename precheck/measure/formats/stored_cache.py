"""A key-value cache that hands out what it stores: the decode view, in one forward.

Idea. Every model of transformers gives its keys and values, after the rotation, to ``update`` of
the cache that it was called with, and attends to what that returns. This cache returns the stored
form of the new tokens. In one forward over a text every query then attends to the stored form of
its own and of all earlier tokens, as it does while text is generated token by token.

Assumptions. A token's stored form does not depend on later tokens, which holds where every scale is
fixed or covers one token. A scale for the whole tensor is that of the batch.

What it cannot see: a kernel that also rounds queries or probabilities, and how it adds up.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, EncoderDecoderCache

from precheck.errors import UnsupportedConfigurationError, first_line
from precheck.measure.formats.stored_op import Stored, store

if TYPE_CHECKING:
    from torch import Tensor

    from precheck.measure.formats.parts import Storing


class StoredCache(DynamicCache):
    """Keys and values as a format stores them.

    Args:
        config: the model's.
        name: of the format.
        is_kept: keep them for later forwards, which generation needs. Otherwise a forward can be
            repeated, and takes no more memory than one without a cache.
        storing: which parts are stored in the format: ``3.keys``, ``3.values``.
        prefix: of the names of parts: ``cross.`` for cross-attention.
    """

    def __init__(
        self, config: Any, name: str, *, is_kept: bool, storing: Storing, prefix: str = ""
    ) -> None:
        super().__init__(config=config)
        if not is_kept:
            self.layers = _Forgetful(self.layers)
        self.name = name
        self.is_kept = is_kept
        self._storing = storing
        self._prefix = prefix
        self.num_stored = 0
        self.reads_stored = True
        """Hand out what is stored; else keys and values as they came, of a forward that is the
        first."""

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Stores keys and values, both ``(batch, heads, seq, head_dim)``; what is read back."""
        self.num_stored += 1
        keys = self._store(layer_idx, key_states, Stored.KEYS)
        values = self._store(layer_idx, value_states, Stored.VALUES)
        if not self.is_kept:
            return keys, values
        read = super().update(keys, values, layer_idx, *args, **kwargs)
        return read if self.reads_stored else (key_states, value_states)

    def _store(self, layer: int, states: Tensor, what: Stored) -> Tensor:
        part = f"{self._prefix}{layer}"
        if not self._storing.is_stored(f"{part}.{what}"):
            return states
        storing = self._storing
        largest = storing.largest.get(f"{part}.{what}")
        return store(part, states, what, self.name, parts=storing.parts, largest=largest)


class _Forgetful(list[Any]):
    """Layers of a cache that are new whenever they are asked for.

    What a layer keeps besides keys and values (recurrent states, keys of an indexer) is forgotten
    too, so that a decoder layer computes the same when it is called again.
    """

    def __getitem__(self, index: Any) -> Any:
        """A copy of the empty layer; its states are in its fields and in dictionaries there."""
        layer = copy.copy(super().__getitem__(index))
        for name, value in vars(layer).items():
            if isinstance(value, dict):
                setattr(layer, name, value.copy())
        return layer


class _Never(dict[int, bool]):
    """Which cross-attention layers have their keys already: none, in a forward by itself."""

    def __setitem__(self, key: int, value: bool) -> None:
        """Forgets it."""


def new_cache(config: Any, name: str, *, is_kept: bool, storing: Storing) -> Cache:
    """An empty cache for a model with this config; for arguments see :class:`StoredCache`.

    Raises:
        UnsupportedConfigurationError: transformers has no cache for it, or one of recurrent states.
    """
    is_pair = bool(getattr(config, "is_encoder_decoder", False))
    try:
        own = StoredCache(config, name, is_kept=is_kept, storing=storing)
        cross = StoredCache(config, name, is_kept=is_kept, storing=storing, prefix="cross.")
        pair = EncoderDecoderCache(own, cross) if is_pair else None
    except Exception as error:  # a config may lack anything that transformers expects
        raise UnsupportedConfigurationError(
            f"no key-value cache for this model: {first_line(error)}"
        ) from error
    if own.layers and not any(isinstance(layer, CacheLayerMixin) for layer in own.layers):
        raise UnsupportedConfigurationError("no layer has keys and values to store")
    if pair is not None and not is_kept:
        pair.is_updated = _Never()
    return own if pair is None else pair


def plain_cache(config: Any) -> Cache:
    """An empty cache as the model makes itself, for more than one forward."""
    return DynamicCache(config=config)


def check_used(cache: Cache) -> None:
    """Refuses the result of a forward that stored nothing.

    Raises:
        UnsupportedConfigurationError: no layer gave the cache its keys.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if isinstance(own, StoredCache) and not own.num_stored:
        raise UnsupportedConfigurationError(
            "no layer stores its keys in the key-value cache of transformers"
        )
