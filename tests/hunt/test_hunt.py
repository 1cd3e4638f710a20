"""What ``precheck hunt`` finds in planted models, and that its figures are a scan's."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import torch

from precheck.checkpoint.source import open_checkpoint
from precheck.errors import ExitCode, UsageError
from precheck.hunt.hunt import hunt, trial_of
from precheck.hunt.request import HuntRequest
from precheck.hunt.saved_search import restore, saved
from precheck.hunt.scans import scanned
from precheck.measure.hunt import swaps
from precheck.measure.hunt.budget import Budget, SearchOverError
from precheck.measure.hunt.first_layer import context_free, first_layer
from precheck.measure.hunt.targets import TargetWitness
from precheck.measure.subject.subject import CheckpointSubject
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.hunt import HuntStatus
from tests.hunt.plants import Kind, Plant, build
from tests.hunt.words import tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precheck.measure.hunt.trial import Trial
    from precheck.records.progress import Announcement, Step
    from tests.shell import Shell

VOCAB_SIZE = 2_000
_PAIR = Plant(kind=Kind.PAIR, architecture="Llama", seed=3, vocab_size=VOCAB_SIZE)


def ignore(_event: Announcement | Step) -> None:
    """Observe nothing."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that two tokens break."""
    folder = tmp_path_factory.mktemp("pair") / "model"
    build(_PAIR, folder)
    return folder


@pytest.fixture(scope="module")
def witness(model: Path) -> TargetWitness:
    """Of a scan of it."""
    found = TargetWitness(HuntRequest().dtype)
    request = HuntRequest(is_quick=True)
    scanned(_subject(model), request, witness=found, prompts=None, observe=ignore)
    return found


@pytest.fixture
def trial(model: Path, witness: TargetWitness) -> Iterator[Trial]:
    """A search that has not begun."""
    request = HuntRequest(most_tokens=20_000, minutes=10)
    with trial_of(_subject(model), request, witness, observe=ignore) as made:
        yield made


def _subject(model: Path) -> CheckpointSubject:
    return CheckpointSubject(open_checkpoint(str(model), observe=ignore))


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [
        pytest.param(Kind.FIRST, "Qwen3", marks=pytest.mark.slow),
        (Kind.PAIR, "Llama"),
        pytest.param(Kind.REPEATED, "Gemma", marks=pytest.mark.slow),
        pytest.param(Kind.LENGTH, "GPT2", marks=pytest.mark.slow),
    ],
)
def test_finds_what_breaks_a_model(kind: Kind, architecture: str, tmp_path: Path) -> None:
    plant = Plant(kind=kind, architecture=architecture, seed=3, vocab_size=VOCAB_SIZE)
    planted = build(plant, tmp_path)
    request = HuntRequest(minutes=20, most_tokens=300_000, ends_at_first=True, is_quick=True)
    found = hunt(str(tmp_path), request=request, observe=ignore)
    assert found.is_refuted
    worst = found.rows[0]
    assert worst.status is HuntStatus.REFUTED
    assert worst.probes_abs_max < worst.limit < worst.found_abs_max
    assert planted.module in {worst.module, f"layer {worst.layer}"}
    assert worst.prompt is not None
    prompt = found.prompts[worst.prompt]
    assert prompt.text is not None
    made = tokenizer(VOCAB_SIZE, adds_bos=plant.adds_bos)
    assert tuple(made(prompt.text)["input_ids"]) == prompt.token_ids
    json.dumps(found.to_dict(), allow_nan=False)


def test_figures_are_those_of_a_scan(trial: Trial, model: Path) -> None:
    ids = (5, 900, 77, 1200, 300)
    values = trial.evaluator.values(torch.tensor([ids]))[0].tolist()
    again = TargetWitness(HuntRequest().dtype)
    scanned(_subject(model), HuntRequest(), witness=again, prompts=[ids], observe=ignore)
    measured = {target.key: target.probes_abs_max for target in again.targets("eager")}
    assert len(values) > 40
    for target, value in zip(trial.evaluator.targets, values, strict=True):
        if target.mechanism is Mechanism.LOGITS:  # a search computes those of the last position
            assert 0 < value <= measured[target.key] * 1.000001
        else:
            assert measured[target.key] == pytest.approx(value, rel=1e-6), target.key


def test_rows_of_a_batch_have_the_values_that_they_have_alone(trial: Trial) -> None:
    rows = torch.randint(VOCAB_SIZE, (6, 7), generator=torch.Generator().manual_seed(2))
    alone = torch.cat([trial.evaluator.values(row) for row in rows.split(1)])
    torch.testing.assert_close(trial.evaluator.values(rows), alone, rtol=1e-4, atol=1e-5)


def test_the_first_layer_is_enumerated(trial: Trial) -> None:
    trial.budget, trial.longest_pair = Budget(seconds=600), 16
    first_layer(trial)
    names = {trial.evaluator.targets[number].module for number in trial.exact}
    projections = {f"model.layers.0.self_attn.{name}_proj" for name in "qkv"}
    assert projections <= names
    assert not any(name.startswith(("model.layers.1", "model.norm")) for name in names)
    everything = torch.arange(VOCAB_SIZE).unsqueeze(1)
    largest = trial.evaluator.values(everything, wanted=sorted(trial.exact)).amax(dim=0)
    best = trial.archive.values(any_ids=True)
    for number in trial.exact:
        assert best[number] == pytest.approx(float(largest[number]), rel=1e-5)


def test_what_a_context_changes_is_not_called_exact(trial: Trial) -> None:
    numbers = context_free(trial)
    drawn = torch.randint(VOCAB_SIZE, (64, 6), generator=torch.Generator().manual_seed(3))
    together = trial.evaluator.values(drawn)
    singles = torch.stack([trial.evaluator.values(column.unsqueeze(1)) for column in drawn.T])
    for number in numbers:
        torch.testing.assert_close(together[:, number], singles.amax(dim=0)[:, number])


def test_slopes_are_those_of_differences(trial: Trial) -> None:
    rows = torch.tensor([[50, 900, 77]])
    number = next(
        number
        for number, target in enumerate(trial.evaluator.targets)
        if target.mechanism == "gated_product"
    )
    slopes = trial.evaluator.slopes(rows, number, lane=None)
    assert slopes is not None
    place = int(slopes[0].norm(dim=1).argmax())
    token, slope = int(rows[0, place]), slopes[0, place]
    embedding = trial.evaluator.embedding
    assert isinstance(embedding, torch.nn.Embedding)
    weight = embedding.weight
    before = weight[token].clone()
    step = slope / slope.norm() * 1e-2
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight[token] = before + sign * step
            values.append(float(trial.evaluator.values(rows)[0, number]))
            weight[token] = before
    difference = (values[0] - values[1]) / 2e-2
    assert difference == pytest.approx(float(slope.norm()), rel=2e-2)


def test_special_and_unused_tokens_are_no_texts(trial: Trial) -> None:
    space = trial.space
    assert not set(space.tokens) & {0, 1, 2}
    assert space.text_of((1, 900)) is None
    assert space.text_of((900,)) is not None
    # a pair that the tokenizer merges is another text
    made = tokenizer(VOCAB_SIZE, adds_bos=False)
    assert len(made("ba")["input_ids"]) == 1
    assert space.text_of((*made("b")["input_ids"], *made("a")["input_ids"])) is None


def test_a_seed_gives_the_same_search_and_another_one_another(
    model: Path, witness: TargetWitness
) -> None:
    def best(seed: int) -> list[tuple[float, tuple[int, ...]]]:
        request = HuntRequest(most_tokens=4_000, minutes=10, seed=seed)
        with trial_of(_subject(model), request, witness, observe=ignore) as made:
            with suppress(SearchOverError):
                swaps.swaps(made, rounds=2)
            numbers = range(made.archive.num_targets)
            catches = [made.archive.best(number) for number in numbers]
        return [(catch.value, catch.ids) for catch in catches if catch is not None]

    assert best(5) == best(5) != best(6)


def test_a_search_goes_on_where_it_was(model: Path, witness: TargetWitness, trial: Trial) -> None:
    swaps.swaps(trial, rounds=2)
    text = saved(trial, model="m", done={"lengths"})
    request = HuntRequest(most_tokens=20_000, minutes=10)
    with trial_of(_subject(model), request, witness, observe=ignore) as other:
        assert restore(other, json.loads(text), model="m") == {"lengths"}
        assert other.archive.values() == trial.archive.values()
        assert other.num_rounds == trial.num_rounds
        with pytest.raises(UsageError, match="the search is one of"):
            restore(other, json.loads(text), model="another")


def test_writes_prompts_that_a_scan_takes(shell: Shell, model: Path) -> None:
    ended = shell(
        str(model), "--minutes", "20", "--most-tokens", "60000", "--first", "--quick",
        "-o", "worst.jsonl", "--resume", "search.json", command="hunt",
    )  # fmt: skip
    assert ended.code == ExitCode.GATE_FAILS, ended.err
    assert "refuted: float16 overflows in" in " ".join(ended.out.split())
    lines = (shell.folder / "worst.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(line).keys() <= {"text", "token_ids"} for line in lines)
    assert json.loads((shell.folder / "search.json").read_text())["num_tokens"] > 0
    again = shell(str(model), "--prompts", "worst.jsonl", "--dtype", "float16", command="scan")
    assert "overflow" in again.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "float32"], "nothing overflows in float32"),
        (["-o", "worst.txt"], "expected a name that ends with .jsonl"),
        (["--mechanism", "gated"], "unknown mechanism"),
    ],
)
def test_wrong_options_are_refused_first(shell: Shell, arguments: list[str], message: str) -> None:
    ended = shell("model", *arguments, command="hunt")
    assert ended.code == ExitCode.USAGE
    assert message in ended.err
