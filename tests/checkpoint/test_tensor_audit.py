from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from precheck.checkpoint import checkpoint_audit, checksum
from precheck.checkpoint.checkpoint_audit import CheckpointAuditor, audit_weights
from precheck.checkpoint.checksum import METHOD, Checksum
from precheck.checkpoint.tensor_audit import TensorAudit, audit_tensor
from precheck.checkpoint.weights import Weights
from precheck.records.stats import TensorStats
from precheck.records.stored import CheckpointAudit, TensorFault

if TYPE_CHECKING:
    from pathlib import Path

EDGES = [
    0.0, 65504.0, 65519.0, math.nextafter(65520.0, 0.0), 65520.0, 65536.0, 1e30,
    2.0**-14, 2.0**-14 - 2.0**-25, math.nextafter(2.0**-14 - 2.0**-25, 0.0), 2.0**-14 - 2.0**-24,
    2.0**-24, 2.0**-25, math.nextafter(2.0**-25, 1.0), 2.0**-26, 1e-30, math.inf, math.nan, 1.0,
]  # fmt: skip

values = st.one_of(
    st.sampled_from([sign * edge for edge in EDGES for sign in (1.0, -1.0)]),
    st.floats(width=32),
    st.floats(min_value=65000, max_value=66000, width=32),
    st.floats(min_value=0.0, max_value=2.0**-13, width=32),
)


def oracle(values: list[float]) -> TensorAudit:
    """The same, from the definition of binary16 with ties to even, in float64."""
    finite = [abs(value) for value in values if math.isfinite(value)]
    return TensorAudit(
        stats=TensorStats(
            num_elements=len(values),
            num_nan=sum(map(math.isnan, values)),
            num_inf=sum(map(math.isinf, values)),
            abs_max=max(finite, default=None),
        ),
        num_float16_inf=sum(value >= 65520.0 for value in finite),
        num_float16_zero=sum(0.0 < value <= 2.0**-25 for value in finite),
        num_float16_subnormal=sum(2.0**-25 < value < 2.0**-14 - 2.0**-25 for value in finite),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@given(values=st.lists(values, max_size=40), chunk=st.integers(min_value=1, max_value=50))
def test_equals_a_float64_oracle(dtype: torch.dtype, values: list[float], chunk: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    expected = oracle(tensor.double().tolist())
    if values:
        assert audit_tensor(tensor, chunk_elements=chunk) == expected
    else:
        assert audit_tensor(tensor) == TensorAudit()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_equals_the_oracle_on_every_pattern_of_16_bits(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
    for block in patterns.split(16):  # the boundaries of float16 fall inside a block and between
        assert audit_tensor(block) == oracle(block.double().tolist())


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_edge_value_is_exact_in_float32(edge: float, sign: float) -> None:
    tensor = torch.tensor([sign * edge], dtype=torch.float32)
    assert audit_tensor(tensor) == oracle(tensor.double().tolist())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_counts_what_the_cast_of_loading_does(dtype: torch.dtype) -> None:
    # A float64 weight is rounded twice on its way to float16; loading does that too.
    tensor = torch.tensor([*EDGES, 65519.9999, 2.0**-25 * 1.0001], dtype=torch.float64).to(dtype)
    half = tensor.to(torch.float16)
    audit = audit_tensor(tensor)
    assert audit.num_float16_inf == int((half.isinf() & tensor.isfinite()).sum())
    assert audit.num_float16_zero == int(((half == 0) & (tensor != 0)).sum())


def test_8_bit_weights_are_audited_too() -> None:
    tensor = torch.tensor([0.0, 448.0, 57344.0, math.inf]).to(torch.float8_e5m2)
    assert audit_tensor(tensor).stats == TensorStats(num_elements=4, num_inf=1, abs_max=57344.0)


@given(parts=st.lists(st.lists(values, min_size=1, max_size=20), min_size=1, max_size=4))
def test_merging_equals_auditing_the_concatenation(parts: list[list[float]]) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    merged = TensorAudit()
    for tensor in tensors:
        merged = merged.merge(audit_tensor(tensor))
    assert merged == audit_tensor(torch.cat(tensors))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0).reshape(4, 6)[:, ::2],
        torch.tensor(3.0),
        torch.ones(1).expand(5),
    ],
    ids=["transposed", "strided", "scalar", "expanded"],
)
def test_the_layout_does_not_matter(tensor: torch.Tensor) -> None:
    assert audit_tensor(tensor, chunk_elements=5) == audit_tensor(tensor.clone().flatten())


def test_a_transposed_tensor_is_not_copied() -> None:
    from precheck.checkpoint.tensor_audit import _chunks  # noqa: PLC0415  how, not what

    tensor = torch.arange(24.0).reshape(4, 6).T
    storage = tensor.untyped_storage().data_ptr()
    chunks = list(_chunks(tensor, chunk_elements=7))
    assert {chunk.untyped_storage().data_ptr() for chunk in chunks} == {storage}
    assert max(chunk.numel() for chunk in chunks) == 7


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    save_file(
        {
            "fine": torch.full((10,), 0.5, dtype=torch.bfloat16),
            "large": torch.tensor([70000.0, -1e5, 3.0]),
            "broken": torch.tensor([math.nan, math.inf, -math.inf, 2.0]),
            "nothing": torch.tensor([math.nan]),
            "tiny": torch.tensor([1e-9, 1e-5, 0.0]),
            "ids": torch.arange(7),
            "empty": torch.zeros(0),
        },
        file,
    )
    return file


def test_names_the_tensors_at_fault(checkpoint: Path) -> None:
    with Weights([checkpoint]) as weights:
        audit = audit_weights(weights)
    assert replace(audit, digest=None, digests={}) == CheckpointAudit(
        checksum=METHOD,
        nonfinite=(
            TensorFault(name="broken", num_elements=3, abs_max=2.0),
            TensorFault(name="nothing", num_elements=1, abs_max=None),
        ),
        out_of_float16_range=(TensorFault(name="large", num_elements=2, abs_max=1e5),),
        num_elements=21,
        num_float16_zero=1,
        num_float16_subnormal=1,
        size_bytes=checkpoint.stat().st_size,
    )


def test_reads_each_tensor_once(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = Weights.__getitem__

    def counted(self: Weights, name: str) -> torch.Tensor:
        read.append(name)
        return original(self, name)

    monkeypatch.setattr(Weights, "__getitem__", counted)
    with Weights([checkpoint]) as weights:
        audit_weights(weights)
        assert sorted(read) == sorted(weights)


def test_counts_elements_by_dtype(checkpoint: Path) -> None:
    with Weights([checkpoint]) as weights:
        assert weights.headers().elements_by_dtype == {"bfloat16": 10, "float32": 11, "int64": 7}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Blocks of so many bytes, with several chunks in each."""
    monkeypatch.setattr(checksum, "BLOCK_BYTES", 24)
    monkeypatch.setattr(checkpoint_audit, "BLOCK_BYTES", 24)
    monkeypatch.setattr(checkpoint_audit, "CHUNK_ELEMENTS", 4)
    return 24


def test_the_digest_is_that_of_every_byte(checkpoint: Path, small_blocks: int) -> None:
    lines = []
    with Weights([checkpoint]) as weights:
        for name in sorted(weights):
            tensor = weights[name]
            content = bytes(tensor.view(torch.uint8).numpy().tobytes())
            blocks = [
                content[at : at + small_blocks] for at in range(0, len(content), small_blocks)
            ]
            each = b"".join(xxhash.xxh3_64(block).digest() for block in blocks)
            dtype = str(tensor.dtype).removeprefix("torch.")
            lines.append(f"{name} {dtype} {tuple(tensor.shape)} {xxhash.xxh3_64_hexdigest(each)}\n")
        found = audit_weights(weights)
    assert found.digest == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("rows", [(1,) * 10, (3, 3, 4), (7, 3), (10,)])
@pytest.mark.parametrize("num_threads", [1, 5])
def test_parts_and_threads_do_not_matter(
    rows: tuple[int, ...],
    num_threads: int,
    tmp_path: Path,
    small_blocks: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = torch.linspace(-1e5, 1e5, 50).reshape(10, 5)
    assert values.nbytes > 5 * small_blocks
    save_file({"weight": values}, tmp_path / "model.safetensors")
    with Weights([tmp_path / "model.safetensors"]) as weights:
        whole, parts = CheckpointAuditor(weights), CheckpointAuditor(weights)
        monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
        whole.add({"weight": weights["weight"]})
        for part in weights["weight"].split(list(rows)):
            parts.add_part("weight", part)
        assert whole.result() == parts.result()
        assert whole.result().digest is not None
        assert whole.result().out_of_float16_range


def test_one_bit_changes_the_digest(tmp_path: Path, small_blocks: int) -> None:
    def digest(values: torch.Tensor) -> str | None:
        save_file({"weight": values}, tmp_path / "model.safetensors")
        with Weights([tmp_path / "model.safetensors"]) as weights:
            return audit_weights(weights).digest

    values = torch.ones(3 * small_blocks, dtype=torch.int16)
    digests = {digest(values)}
    for at in (0, small_blocks // 2, -1):
        changed = values.clone()
        changed[at] ^= 1
        digests.add(digest(changed))
    assert len(digests) == 4


def test_a_checksum_of_whole_blocks_has_no_empty_one(small_blocks: int) -> None:
    sums = [Checksum() for _ in range(2)]
    sums[0].update(memoryview(b"a" * 2 * small_blocks))
    sums[1].extend([xxhash.xxh3_64(b"a" * small_blocks).digest()] * 2)
    assert sums[0].hexdigest() == sums[1].hexdigest()


def test_only_digests_of_one_kind_are_compared() -> None:
    old, new = CheckpointAudit(digest="a"), CheckpointAudit(digest="a", checksum=METHOD)
    assert new.has_weights_of(old) is None
    assert new.has_weights_of(replace(new, digest=None)) is None
    assert new.has_weights_of(replace(new, digest="b")) is False
    assert new.has_weights_of(new) is True
