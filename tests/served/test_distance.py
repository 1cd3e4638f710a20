"""Truncated lists are compared as bounds, and a likeness is judged by what rounding does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from precheck.records.configuration import Configuration
from precheck.records.outcomes.served import Answer, Place
from precheck.served.compared import compare
from precheck.served.distance import Told, at_least, at_most
from precheck.served.fingerprint import fingerprint
from precheck.served.likelihood import distances
from precheck.served.readings import Reading, read_row, sequences

PROMPT = (3, 5, 7, 11)
GENERATED = (13, 17, 19, 23, 29, 31, 37, 41)
SIZE = 60


def logits(seed: int, *, noise: float = 0.0, of: torch.Tensor | None = None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(
        (len(PROMPT) + len(GENERATED) - 1, SIZE), generator=generator, dtype=torch.float64
    )
    return 2.0 * drawn if of is None else of + noise * drawn


def answer_of(name: str, scores: torch.Tensor, *, num_told: int = 20) -> Answer:
    """What a server with these logits tells of prompt and continuation."""
    rows = scores.log_softmax(dim=-1)
    text = PROMPT + GENERATED

    def place(row: int) -> Place:
        top = rows[row].topk(num_told)
        return Place(
            token=text[row + 1],
            ids=tuple(top.indices.tolist()),
            log_probabilities=tuple(top.values.tolist()),
        )

    places = [place(row) for row in range(len(rows))]
    return Answer(
        name=name,
        prompt=PROMPT,
        text=None,
        generated=GENERATED,
        generated_text="",
        prompt_places=tuple(places[: len(PROMPT) - 1]),
        generated_places=tuple(places[len(PROMPT) - 1 :]),
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), noise=st.floats(0.0, 3.0), num_told=st.integers(1, SIZE))
def test_the_divergence_lies_between_its_bounds(seed: int, noise: float, num_told: int) -> None:
    server = logits(seed)
    run = logits(seed + 1, noise=noise, of=server)
    answer = answer_of("x", server, num_told=num_told)
    reading = read_row(run, answer)
    told = Told.of(answer.places)
    p, q = server.log_softmax(dim=-1), run.log_softmax(dim=-1)
    exact = (p.exp() * (p - q)).sum(dim=-1).numpy()
    assert (at_least(told.log_probabilities, reading.at_told) <= exact + 1e-9).all()
    assert (at_most(told, reading) >= exact - 1e-9).all()
    if num_told == SIZE:
        np.testing.assert_allclose(
            at_least(told.log_probabilities, reading.at_told), exact, atol=1e-9
        )


def test_a_position_without_a_number_is_unknown_and_the_others_are_not() -> None:
    answer = answer_of("x", logits(1))
    broken = Place(token=13, ids=(1, 2), log_probabilities=(None, None))
    places = (broken, *answer.generated_places[1:])
    answer = Answer(
        name="x", prompt=PROMPT, text=None, generated=GENERATED, generated_text="",
        generated_places=places,
    )  # fmt: skip
    reading = read_row(logits(1), answer)
    found = compare(answer, reading, reading)
    assert np.isnan(found.divergence).tolist() == [True] + 7 * [False]


RUNS = {name: Configuration.parse(f"{name}+sdpa") for name in ("float32", "float16", "bfloat16")}
NOISE = {"float32": 0.0, "float16": 0.004, "bfloat16": 0.032}


@pytest.mark.parametrize("served", NOISE)
@pytest.mark.parametrize("is_same_kernel", [True, False])
def test_a_dtype_is_told_by_the_size_of_its_rounding(served: str, *, is_same_kernel: bool) -> None:
    """With other kernels the float32 run is nearest to every server, and is not the answer."""
    answers: list[Answer] = []
    readings: dict[Configuration, dict[str, Reading]] = {run: {} for run in RUNS.values()}
    for number in range(6):
        exact = logits(100 * number)
        runs = {
            name: logits(100 * number + 1 + i, noise=NOISE[name], of=exact)
            for i, name in enumerate(RUNS)
        }
        server = logits(100 * number + 9, noise=NOISE[served], of=exact)
        answer = answer_of(f"x{number}", runs[served] if is_same_kernel else server)
        answers.append(answer)
        for name, run in RUNS.items():
            readings[run][answer.name] = read_row(runs[name], answer)
    rows = distances(answers, readings, {})
    far = [row.prefill or 0.0 for row in rows]
    if not is_same_kernel and served != "float32":
        assert far.index(min(far)) == 0
    found = fingerprint(rows, prefill_share=0.3)
    assert [rows[index].configuration for index in found.like] == [RUNS[served]]


def test_one_position_that_rounds_less_decides_nothing() -> None:
    """llama.cpp in float16 may agree with float32 in the single position of a prompt."""
    answers: list[Answer] = []
    readings: dict[Configuration, dict[str, Reading]] = {run: {} for run in RUNS.values()}
    for number in range(4):
        exact = logits(100 * number)
        server = logits(100 * number + 9, noise=NOISE["float16"] / 2, of=exact)
        server[len(PROMPT) - 1] = exact[len(PROMPT) - 1]
        answer = replace(answer_of(f"x{number}", server), prompt_places=())
        answers.append(answer)
        for i, (name, run) in enumerate(RUNS.items()):
            of_run = logits(100 * number + 1 + i, noise=NOISE[name], of=exact)
            readings[run][answer.name] = read_row(of_run, answer)
    rows = distances(answers, readings, {})
    found = fingerprint(rows, prefill_share=1 / len(GENERATED))
    assert [rows[index].configuration for index in found.like] == [RUNS["float16"]]


def test_rows_are_filled_at_the_end_to_few_lengths() -> None:
    answers = [
        Answer(
            name=str(length), prompt=tuple(range(length)), text=None, generated=(1,),
            generated_text="",
        )
        for length in (40, 30, 21, 19, 5)
    ]  # fmt: skip
    batches = sequences(answers)
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(3, 40), (1, 19), (1, 5)]
    assert batches[0].input_ids[1, :30].tolist() == list(range(30))
