"""What a block of each type of GGUF decodes to, number by number, as ggml's C code says it.

Written from ``dequantize_row_*`` of
https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c, with loops and float32 as there; it
shares nothing with the package ``gguf``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

F32 = np.float32
Numbers = list[np.float32]
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


def _half(block: bytes, at: int) -> np.float32:
    return F32(np.frombuffer(block, np.float16, 1, at)[0])


def q4_0(block: bytes) -> Numbers:
    d, qs = _half(block, 0), block[2:]
    return [d * F32((q & 15) - 8) for q in qs] + [d * F32((q >> 4) - 8) for q in qs]


def q4_1(block: bytes) -> Numbers:
    d, m, qs = _half(block, 0), _half(block, 2), block[4:]
    return [F32(q & 15) * d + m for q in qs] + [F32(q >> 4) * d + m for q in qs]


def _fifth(block: bytes, at: int) -> list[int]:
    """Five-bit numbers: 32 highest bits, then the lower four of numbers j and j + 16."""
    (bits,) = struct.unpack_from("<I", block, at)
    qs = block[at + 4 :]
    low = [(q & 15) | ((bits >> j) << 4) & 16 for j, q in enumerate(qs)]
    return low + [(q >> 4) | (bits >> (j + 12)) & 16 for j, q in enumerate(qs)]


def q5_0(block: bytes) -> Numbers:
    d = _half(block, 0)
    return [F32(q - 16) * d for q in _fifth(block, 2)]


def q5_1(block: bytes) -> Numbers:
    d, m = _half(block, 0), _half(block, 2)
    return [F32(q) * d + m for q in _fifth(block, 4)]


def q8_0(block: bytes) -> Numbers:
    d = _half(block, 0)
    return [d * F32(q) for q in struct.unpack_from("32b", block, 2)]


def q2_k(block: bytes) -> Numbers:
    scales, qs, d, least = block[:16], block[16:80], _half(block, 80), _half(block, 82)
    result: Numbers = []
    for part in range(2):
        for shift in range(4):
            for half in range(2):
                scale = scales[8 * part + 2 * shift + half]
                dl, ml = d * F32(scale & 15), least * F32(scale >> 4)
                own = qs[32 * part + 16 * half :][:16]
                result += [dl * F32((q >> (2 * shift)) & 3) - ml for q in own]
    return result


def q3_k(block: bytes) -> Numbers:
    mask, qs, packed, d = block[:32], block[32:96], block[96:108], _half(block, 108)
    low = [packed[i] & 15 for i in range(8)] + [packed[i] >> 4 for i in range(8)]
    scales = [low[i] | ((packed[8 + i % 4] >> (2 * (i // 4))) & 3) << 4 for i in range(16)]
    result: Numbers = []
    for part in range(2):
        for shift in range(4):
            for half in range(2):
                dl = d * F32(scales[8 * part + 2 * shift + half] - 32)
                for j in range(16 * half, 16 * half + 16):
                    high = 0 if mask[j] & (1 << (4 * part + shift)) else 4
                    result.append(dl * F32(((qs[32 * part + j] >> (2 * shift)) & 3) - high))
    return result


def _scale_and_least(j: int, packed: bytes) -> tuple[int, int]:
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return (
        (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4,
        (packed[j + 4] >> 4) | (packed[j] >> 6) << 4,
    )


def _k(block: bytes, high: bytes, qs: bytes) -> Numbers:
    d, least, packed = _half(block, 0), _half(block, 2), block[4:16]
    result: Numbers = []
    for j in range(8):
        scale, offset = _scale_and_least(j, packed)
        d1, m1 = d * F32(scale), least * F32(offset)
        for place, q in enumerate(qs[32 * (j // 2) :][:32]):
            fifth = 16 * ((high[place] >> j) & 1) if high else 0
            result.append(d1 * F32(((q >> 4) if j % 2 else (q & 15)) + fifth) - m1)
    return result


def q4_k(block: bytes) -> Numbers:
    return _k(block, b"", block[16:])


def q5_k(block: bytes) -> Numbers:
    return _k(block, block[16:48], block[48:])


def q6_k(block: bytes) -> Numbers:
    low, high, d = block[:128], block[128:192], _half(block, 208)
    scales = struct.unpack_from("16b", block, 192)
    result: Numbers = []
    for part in range(2):
        for quarter in range(4):
            for j in range(32):
                q = low[64 * part + 32 * (quarter % 2) + j]
                q = (q >> 4) if quarter > 1 else (q & 15)
                q |= ((high[32 * part + j] >> (2 * quarter)) & 3) << 4
                scale = scales[8 * part + 2 * quarter + j // 16]
                result.append(d * F32(scale) * F32(q - 32))
    return result


def iq4_nl(block: bytes) -> Numbers:
    d, qs = _half(block, 0), block[2:]
    return [d * F32(IQ4[q & 15]) for q in qs] + [d * F32(IQ4[q >> 4]) for q in qs]


def iq4_xs(block: bytes) -> Numbers:
    d, low, qs = _half(block, 0), block[4:8], block[8:]
    (high,) = struct.unpack_from("<H", block, 2)
    result: Numbers = []
    for part in range(8):
        scale = ((low[part // 2] >> (4 * (part % 2))) & 15) | ((high >> (2 * part)) & 3) << 4
        dl = d * F32(scale - 32)
        own = qs[16 * part :][:16]
        result += [dl * F32(IQ4[q & 15]) for q in own] + [dl * F32(IQ4[q >> 4]) for q in own]
    return result


def tq1_0(block: bytes) -> Numbers:
    qs, rest, d = block[:48], block[48:52], _half(block, 52)
    result: Numbers = []
    for own, count in ((qs[:32], 5), (qs[32:], 5), (rest, 4)):
        for power in range(count):
            for q in own:
                digit = ((q * 3**power & 255) * 3) >> 8
                result.append(F32(digit - 1) * d)
    return result


def tq2_0(block: bytes) -> Numbers:
    qs, d = block[:64], _half(block, 64)
    return [
        F32(((q >> (2 * place)) & 3) - 1) * d
        for part in (qs[:32], qs[32:])
        for place in range(4)
        for q in part
    ]


def mxfp4(block: bytes) -> Numbers:
    d, qs = F32(2.0 ** (block[0] - 128)), block[1:]
    return [d * F32(FP4[q & 15]) for q in qs] + [d * F32(FP4[q >> 4]) for q in qs]


BLOCKS: Mapping[str, Callable[[bytes], Numbers]] = {
    decode.__name__: decode
    for decode in (
        q4_0, q4_1, q5_0, q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, iq4_xs, tq1_0, tq2_0,
        mxfp4,
    )
}  # fmt: skip

SCALES: Mapping[str, tuple[int, ...]] = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82),
    "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,), "iq4_nl": (0,),
    "iq4_xs": (0,), "tq1_0": (52,), "tq2_0": (64,), "mxfp4": (),
}  # fmt: skip
"""Where the float16 scales of a block lie."""
