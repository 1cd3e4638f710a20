"""A checksum of a tensor's bytes whose blocks can be computed side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    from collections.abc import Iterable

BLOCK_BYTES = 8 << 20
METHOD = "xxh3_64/8MiB"
"""How reports call it: XXH3 with 64 bits of every block, and of these digests one after the other.

**Source**: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""


class Checksum:
    """Of bytes that come in pieces of any size, or as the digests of whole blocks.

    >>> pieces, whole = Checksum(), Checksum()
    >>> for piece in (b"a", b"bc"):
    ...     pieces.update(memoryview(piece))
    >>> whole.extend([xxhash.xxh3_64(b"abc").digest()])
    >>> pieces.hexdigest() == whole.hexdigest()
    True
    """

    def __init__(self) -> None:
        self._of_blocks = xxhash.xxh3_64()
        self._block = xxhash.xxh3_64()
        self._room = BLOCK_BYTES
        """Bytes that the block which has begun lacks."""

    def update(self, data: memoryview) -> None:
        """Adds bytes."""
        while data.nbytes:
            piece, data = data[: self._room], data[self._room :]
            self._block.update(piece)
            self._room -= piece.nbytes
            if not self._room:
                self._close_block()

    def extend(self, digests: Iterable[bytes]) -> None:
        """Adds the XXH3 of whole blocks; only the last may be shorter, and nothing follows it."""
        for digest in digests:
            self._of_blocks.update(digest)

    def hexdigest(self) -> str:
        """16 digits, of what was added so far."""
        digest = self._of_blocks.copy()
        if self._room < BLOCK_BYTES:
            digest.update(self._block.digest())
        return digest.hexdigest()

    def _close_block(self) -> None:
        self._of_blocks.update(self._block.digest())
        self._block.reset()
        self._room = BLOCK_BYTES
