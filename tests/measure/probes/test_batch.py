"""Which positions of a tensor are real tokens, for every shape a model makes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precheck.checkpoint.tensor_stats import tensor_stats
from precheck.measure.lockstep.figures.layers import LayerTotals, token_errors
from precheck.measure.lockstep.figures.logits import LogitsTotals
from precheck.measure.probes.batch import Batch
from precheck.measure.watch.real_tokens import RealTokens
from precheck.records.stats import TensorStats
from precheck.records.traces import Probe, Section

ROWS, LENGTH, HEADS = 3, 5, 2
LENGTHS = (2, 5, 4)
MASK = torch.tensor([[0] * (LENGTH - length) + [1] * length for length in LENGTHS]).bool()
REAL = RealTokens(num_rows=ROWS, length=LENGTH, mask=MASK)


def numbered(*shape: int) -> torch.Tensor:
    """Every element says which (row, position) it belongs to: ``100 * row + position``."""
    own = 100.0 * torch.arange(ROWS)[:, None] + torch.arange(LENGTH)
    by_head = own.repeat_interleave(HEADS, dim=0)
    leading = {
        (ROWS, LENGTH): own,
        (ROWS * LENGTH,): own.flatten(),
        (ROWS, HEADS, LENGTH): by_head.reshape(ROWS, HEADS, LENGTH),
        (ROWS * HEADS, LENGTH): by_head,
    }
    depth = next(num for num in (3, 2, 1) if shape[:num] in leading)
    part = leading[shape[:depth]]
    return part.reshape(*part.shape, *[1] * (len(shape) - depth)).expand(shape)


SHAPES = [
    (ROWS, LENGTH),
    (ROWS, LENGTH, 7),
    (ROWS, LENGTH, HEADS, 7),
    (ROWS * LENGTH, 7),
    (ROWS, HEADS, LENGTH, 7),
    (ROWS, HEADS, LENGTH, LENGTH),
    (ROWS * HEADS, LENGTH, 7),
    (ROWS * HEADS, LENGTH, LENGTH),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_real_tokens_are_selected_whatever_the_shape(shape: tuple[int, ...]) -> None:
    tensor = numbered(*shape)
    real = REAL.select(tensor)
    assert real is not None
    expected = {
        100.0 * row + position
        for row in range(ROWS)
        for position in range(LENGTH - LENGTHS[row], LENGTH)
    }
    assert set(real.flatten().tolist()) == expected
    assert real.numel() * ROWS * LENGTH == tensor.numel() * sum(LENGTHS)


@pytest.mark.parametrize("shape", [(LENGTH,), (7, 7), (1, 4, 4), (2, LENGTH, 3), ()], ids=str)
def test_other_shapes_do_not_tell(shape: tuple[int, ...]) -> None:
    assert REAL.select(torch.ones(shape)) is None


def test_without_padding_everything_is_real_and_nothing_copied() -> None:
    whole = RealTokens(num_rows=ROWS, length=LENGTH, mask=None)
    for shape in [*SHAPES, (1, 4, 4)]:
        tensor = torch.ones(shape)
        assert whole.select(tensor) is tensor


def test_tokens_are_rows_of_hidden_states() -> None:
    assert REAL.tokens(numbered(ROWS, LENGTH, 7)).shape == (sum(LENGTHS), 7)
    assert REAL.tokens(numbered(ROWS * LENGTH, 7)).shape == (sum(LENGTHS), 7)
    assert REAL.tokens(torch.ones(ROWS, 4, 7)).shape == (12, 7)  # a decoder beside the encoder


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rows", [(), (1,), (0, 2)])
def test_rows_of_a_fault_are_found(shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
    elements = torch.isin(numbered(*shape), torch.tensor([100.0 * row + 4 for row in rows]))
    assert REAL.rows_with(elements) == rows


def test_streams_of_hidden_states_are_told_from_heads() -> None:
    """Gemma 3n keeps ``(streams, batch, seq, hidden)``."""
    hidden = numbered(ROWS, LENGTH, 7)
    streams = torch.stack([hidden] * 4)
    assert torch.equal(REAL.tokens(streams).unique(), REAL.tokens(hidden).unique())
    elements = torch.isin(streams, torch.tensor([100.0 + LENGTH - 1]))
    assert REAL.rows_with(elements) == (1,)
    assert REAL.first_positions(elements) == REAL.first_positions(elements[0])


def test_rows_are_unknown_where_the_shape_does_not_tell() -> None:
    assert REAL.rows_with(torch.ones(7, 2).bool()) == ()
    assert REAL.rows_with(torch.tensor(True)) == ()
    assert REAL.rows_with(torch.ones(0, 2).bool()) == ()


# Statistics of parts are the statistics of the whole.

VALUES = st.floats(width=16) | st.sampled_from([torch.inf, -torch.inf, torch.nan])
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(st.lists(VALUES, max_size=30), st.integers(0, 30), DTYPES)
def test_merged_statistics_are_those_of_the_whole(
    values: list[float], cut: int, dtype: torch.dtype
) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    whole = tensor_stats(tensor)
    assert tensor_stats(tensor[:cut]).merge(tensor_stats(tensor[cut:])) == whole
    assert whole.merge(TensorStats()) == TensorStats().merge(whole) == whole


@given(st.lists(VALUES, max_size=30), DTYPES)
def test_statistics_equal_a_float64_oracle(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).to(dtype)
    exact = [float(value) for value in tensor.double()]
    finite = [abs(value) for value in exact if abs(value) < float("inf")]
    assert tensor_stats(tensor) == TensorStats(
        num_elements=len(exact),
        num_nan=sum(value != value for value in exact),  # noqa: PLR0124  what NaN is
        num_inf=sum(abs(value) == float("inf") for value in exact),
        abs_max=max(finite, default=None),
    )


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), DTYPES)
def test_token_errors_equal_a_float64_oracle(seed: int, count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    reference = torch.randn(count, 4, generator=generator)
    values = (reference + 0.1 * torch.randn(count, 4, generator=generator)).to(dtype)
    errors = token_errors(values, reference)
    expected = [
        sum((float(a) - float(b)) ** 2 for a, b in zip(x, r, strict=True)) ** 0.5
        / sum(float(b) ** 2 for b in r) ** 0.5
        for x, r in zip(values, reference, strict=True)
    ]
    assert errors.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_token_of_zeros_is_right_if_it_is_zero() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(1, 3)
    assert token_errors(zero, zero).tolist() == [0.0]
    assert token_errors(one, zero).isinf().all()
    assert token_errors(one * torch.nan, one).isnan().all()


def batch_of(rows: list[list[int]], *, kind: str = "text") -> Batch:
    return Batch(
        probes=tuple(
            Probe(name=f"probe_{index}", kind=kind, num_tokens=len(row))
            for index, row in enumerate(rows)
        ),
        input_ids=torch.tensor(rows),
    )


def test_logits_of_split_batches_equal_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (4, 6), generator=generator).tolist()
    values, reference = torch.randn(2, 4, 6, 9, generator=generator)
    values = (reference + 0.3 * values).half()
    whole, split = LogitsTotals(), LogitsTotals()
    whole.add(values, reference, batch=batch_of(ids), is_causal=True, same_routing=None)
    for row in range(4):
        part = slice(row, row + 1)
        batch = batch_of(ids[part])
        split.add(values[part], reference[part], batch=batch, is_causal=True, same_routing=None)
    one, other = whole.trace, split.trace
    assert one.first_greedy_divergence is not None
    assert other.first_greedy_divergence is not None
    assert one.first_greedy_divergence.position == other.first_greedy_divergence.position
    for name in ("abs_max", "num_nonfinite", "kl_divergence_max", "top1_agreement"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("kl_divergence_mean", "perplexity", "reference_perplexity"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-12)


def test_logits_are_the_same_in_any_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (2, 6), generator=generator).tolist()
    reference = torch.randn(2, 6, 9, generator=generator)
    values = (reference + 0.3 * torch.randn(2, 6, 9, generator=generator)).half()
    traces = []
    for chunk in (1 << 23, 9, 1, 25):
        monkeypatch.setattr("precheck.measure.lockstep.figures.layers.CHUNK_ELEMENTS", chunk)
        totals = LogitsTotals()
        totals.add(values, reference, batch=batch_of(ids), is_causal=True, same_routing=None)
        traces.append(totals.trace)
    for one, other in itertools.pairwise(traces):
        assert one.first_greedy_divergence == other.first_greedy_divergence
        assert one.kl_divergence_mean == pytest.approx(other.kl_divergence_mean, rel=1e-12)
        assert one.perplexity == pytest.approx(other.perplexity, rel=1e-12)


def test_perplexity_is_for_text_only() -> None:
    logits = torch.randn(1, 4, 9)
    totals = LogitsTotals()
    batch = batch_of([[1, 2, 3, 4]], kind="token_ids")
    totals.add(logits, logits, batch=batch, is_causal=True, same_routing=None)
    assert totals.trace.perplexity is None
    assert totals.trace.kl_divergence_mean == 0.0
    assert totals.trace.top1_agreement == 1.0


def test_tokens_without_an_answer_do_not_hide_those_that_have_one() -> None:
    reference = torch.randn(1, 4, 9)
    values = reference.clone()
    values[0, 2] = torch.nan
    totals = LogitsTotals()
    totals.add(values, reference, batch=batch_of([[1, 2, 3, 4]]), is_causal=True, same_routing=None)
    assert totals.trace.num_nonfinite == 9
    assert totals.trace.kl_divergence_mean == 0.0
    assert totals.trace.top1_agreement == 1.0


def test_layers_of_split_batches_equal_those_of_the_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(10, 4, generator=generator)
    values = (reference + 0.1 * torch.randn(10, 4, generator=generator)).half()
    values[3] = torch.inf
    same_routing = torch.arange(10) % 3 != 0
    whole, split = (
        LayerTotals(index=0, section=Section.DECODER, module="layers.0") for _ in range(2)
    )
    whole.add(values, reference, same_routing)
    for part in (slice(0, 4), slice(4, 5), slice(5, 10)):
        split.add(values[part], reference[part], same_routing[part])
    one, other = whole.trace, split.trace
    assert one.num_inf == other.num_inf == 4
    assert one.abs_max == other.abs_max
    assert one.relative_error == pytest.approx(other.relative_error, rel=1e-12)
    assert one.relative_error_same_routing == pytest.approx(
        other.relative_error_same_routing, rel=1e-12
    )
