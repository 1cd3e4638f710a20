"""Blocks of GGUF, written by hand, against their published formula; and files that are broken."""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

from precheck.checkpoint.gguf.header import read_header
from precheck.checkpoint.gguf.recipes import Recipe
from precheck.checkpoint.gguf.weights import GgufWeights
from precheck.errors import CheckpointCorruptError, CheckpointError, UnsupportedModelError
from tests.checkpoint.gguf_blocks import BLOCKS, SCALES
from tests.gguf_files import Kind

if TYPE_CHECKING:
    from pathlib import Path

STRING, ARRAY, UINT32 = 8, 9, 4
ARCHITECTURE = ("general.architecture", STRING, b"llama")


def text(content: bytes) -> bytes:
    """A string of GGUF: its length, then its bytes."""
    return struct.pack("<Q", len(content)) + content


def key(name: str, kind: int, value: bytes | int) -> bytes:
    """A key with its value, as the format has it."""
    content = struct.pack("<I", value) if isinstance(value, int) else value
    return (
        text(name.encode())
        + struct.pack("<I", kind)
        + (text(content) if kind == STRING else content)
    )


def tensor(name: bytes, dimensions: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    """The description of a tensor; the dimension that varies fastest comes first."""
    layout = f"<I{len(dimensions)}QIQ"
    return text(name) + struct.pack(layout, len(dimensions), *dimensions, kind, offset)


def whole(
    *,
    keys: tuple[bytes, ...] = (key(*ARCHITECTURE),),
    tensors: tuple[bytes, ...] = (),
    data: bytes = b"",
    start: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A file, byte by byte; the counts may lie."""
    head = start + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head += b"".join((*keys, *tensors))
    return head + bytes(-len(head) % 32) + data


def decoded(file: Path, name: str = "x") -> torch.Tensor:
    """The tensor that a file holds."""
    header = read_header(file)
    (stored,) = (each for each in header.tensors if each.name == name)
    recipes = {name: Recipe(sources=(stored,), shape=stored.shape)}
    with GgufWeights(file, header, recipes) as weights:
        return weights[name]


# Types


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_block_is_decoded_as_its_formula_says(name: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[name.upper()]
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(len(name) * sum(name.encode()))
    blocks = [bytearray(random.bytes(size)) for _ in range(6)]
    scales = (0.5, -2.0, 1e-3, 65504.0, 6e-8, 0.0)
    for block, scale in zip(blocks, scales, strict=True):
        for place, at in enumerate(SCALES[name]):
            block[at : at + 2] = np.float16(scale * (1 - 0.25 * place)).tobytes()
        if name == "mxfp4":
            block[0] = 100 + abs(int(8 * scale)) % 60
    file = tmp_path / "a.gguf"
    data = b"".join(map(bytes, blocks))
    file.write_bytes(whole(tensors=(tensor(b"x", (2 * elements, 3), kind),), data=data))
    expected = torch.tensor(
        np.array([BLOCKS[name](bytes(block)) for block in blocks], dtype=np.float32)
    )
    assert torch.equal(decoded(file), expected.view(3, 2 * elements))


@pytest.mark.parametrize(
    ("kind", "layout", "values"),
    [
        (Kind.F32, "<2f", (1.5, -3e38)),
        (Kind.F16, "<2e", (65504.0, -0.25)),
        # the upper half of float32: 1.0 and -2.0
        (Kind.BF16, "<2H", (0x3F80, 0xC000)),
    ],
)
def test_plain_numbers_are_read_as_they_are(
    kind: Kind, layout: str, values: tuple[Any, ...], tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(whole(tensors=(tensor(b"x", (2,), kind),), data=struct.pack(layout, *values)))
    expected = (1.0, -2.0) if kind is Kind.BF16 else values
    assert decoded(file).double().tolist() == pytest.approx(expected, rel=1e-7)


def test_a_written_block_of_q4_0(tmp_path: Path) -> None:
    # scale 0.5; numbers 0 and 15 in the first byte, 8 and 8 in the others
    block = struct.pack("<e", 0.5) + bytes([0xF0]) + bytes([0x88]) * 15
    file = tmp_path / "a.gguf"
    file.write_bytes(whole(tensors=(tensor(b"x", (32,), Kind.Q4_0),), data=block))
    assert decoded(file).tolist() == [-4.0] + [0.0] * 15 + [3.5] + [0.0] * 15


def test_rows_are_those_of_the_whole(tmp_path: Path) -> None:
    rows = 37
    data = np.random.default_rng(0).bytes(rows * 34)
    file = tmp_path / "a.gguf"
    file.write_bytes(whole(tensors=(tensor(b"x", (32, rows), Kind.Q8_0),), data=data))
    header = read_header(file)
    recipes = {"x": Recipe(sources=header.tensors, shape=(rows, 32))}
    with GgufWeights(file, header, recipes) as weights:
        values = weights["x"]
        for wanted in (slice(3, 20), slice(0, 0), [5, 6, 7, 2, 2, 36]):
            buffer = torch.empty(rows * 32 * 4, dtype=torch.uint8)
            part = weights.read_rows_into("x", wanted, buffer)
            assert torch.equal(part.nan_to_num(), values[wanted].nan_to_num())


# Broken files


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "does not start with GGUF"),
    "another format": (b"PK\x03\x04" + bytes(60), "does not start with GGUF"),
    "cut in its counts": (whole()[:20], "ends within its header"),
    "cut in a key": (whole()[:40], "in a file of 40 bytes"),
    "many keys": (whole(num_keys=2**63), "9,223,372,036,854,775,808 keys"),
    "many tensors": (whole(num_tensors=2**60), "tensors"),
    "a long text": (
        whole(keys=(text(b"k") + struct.pack("<IQ", STRING, 2**62),)),
        "the value of 'k' has 4,611,686,018,427,387,904 bytes",
    ),
    "a long list of texts": (
        whole(keys=(key("k", ARRAY, struct.pack("<IQ", STRING, 2**61)),)),
        "texts in 'k'",
    ),
    "a long list of numbers": (
        whole(keys=(key("k", ARRAY, struct.pack("<IQ", UINT32, 2**61)),)),
        "numbers in 'k'",
    ),
    "a list of lists": (
        whole(keys=(key("k", ARRAY, struct.pack("<IQ", ARRAY, 1)),)),
        "unknown type 9",
    ),
    "an unknown value": (whole(keys=(key("k", 99, b""),)), "unknown type 99"),
    "no text": (whole(keys=(text(b"\xff\xfe") + bytes(8),)), "is not UTF-8"),
    "a key twice": (whole(keys=(key(*ARCHITECTURE),) * 2), "is there twice"),
    "no architecture": (whole(keys=()), "no general.architecture"),
    "an architecture that is a number": (
        whole(keys=(key("general.architecture", UINT32, 3),)),
        "no general.architecture",
    ),
    "many layers": (
        whole(keys=(key(*ARCHITECTURE), key("llama.block_count", UINT32, 4_000_000_000))),
        "4,000,000,000 layers",
    ),
    "an odd alignment": (
        whole(
            keys=(key(*ARCHITECTURE), key("general.alignment", UINT32, 3)),
            tensors=(tensor(b"x", (1,), Kind.F32),),
        ),
        "general.alignment is 3",
    ),
    "five dimensions": (whole(tensors=(tensor(b"x", (1,) * 5, 0),)), "5 dimensions"),
    "no dimension": (whole(tensors=(tensor(b"x", (), 0),)), "0 dimensions"),
    "a dimension of nothing": (whole(tensors=(tensor(b"x", (0,), 0),)), "has the shape (0,)"),
    "a part of a block": (
        whole(tensors=(tensor(b"x", (31,), Kind.Q8_0),), data=bytes(40)),
        "whole blocks of 32",
    ),
    "beyond the file": (
        whole(tensors=(tensor(b"x", (1 << 40, 1 << 20), 0),), data=bytes(64)),
        "lies in bytes",
    ),
    "an offset beyond the file": (
        whole(tensors=(tensor(b"x", (1,), 0, 2**63),), data=bytes(64)),
        "lies in bytes",
    ),
    "two at the same place": (
        whole(tensors=(tensor(b"x", (8,), 0), tensor(b"y", (8,), 0)), data=bytes(64)),
        "'x' and 'y' overlap",
    ),
    "two of the same name": (
        whole(tensors=(tensor(b"x", (8,), 0), tensor(b"x", (8,), 0, 32)), data=bytes(64)),
        "same name",
    ),
    "a name of escapes": (
        whole(tensors=(tensor(b"\x1b[2J\x1b]0;pwned\x07" * 50, (0,), 0),)),
        r"'\x1b[2J\x1b]0;pwned\x07",
    ),
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_a_broken_file_is_refused_with_its_fault(case: str, tmp_path: Path) -> None:
    content, says = HOSTILE[case]
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(CheckpointCorruptError) as raised:
        read_header(file)
    assert says in raised.value.message
    assert raised.value.exit_code == 3
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 600


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (whole(version=1), "GGUF version 1"),
        (whole(version=0x03000000), "GGUF version 50331648"),
        (whole(tensors=(tensor(b"x", (32,), 200),), data=bytes(64)), "type 200"),
        (whole(tensors=(tensor(b"x", (32,), Kind.Q8_1),), data=bytes(64)), "Q8_1"),
        (
            whole(keys=(key(*ARCHITECTURE), key("split.count", 2, struct.pack("<H", 3)))),
            "one of 3 parts",
        ),
    ],
)
def test_what_cannot_be_decoded_is_refused_by_name(
    content: bytes, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(content)
    with pytest.raises(UnsupportedModelError, match=says):
        read_header(file)


def test_no_change_of_a_byte_does_more_than_raise_an_error_of_ours(tmp_path: Path) -> None:
    keys = (key(*ARCHITECTURE), key("llama.block_count", UINT32, 2), key("t", STRING, b"a text"))
    tensors = (tensor(b"x", (32, 2), Kind.Q8_0), tensor(b"y", (8,), 0, 96))
    content = whole(keys=keys, tensors=tensors, data=bytes(128))
    file = tmp_path / "a.gguf"
    for place in range(len(content) - 128):
        for value in (0x00, 0x01, 0x7F, 0xFF):
            file.write_bytes(content[:place] + bytes([value]) + content[place + 1 :])
            with suppress(CheckpointError):
                read_header(file)
    for length in range(len(content)):
        file.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_header(file)
