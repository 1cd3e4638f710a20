"""Images in a hunt: sizes that break a tower are found, and figures are a scan's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from precheck.checkpoint.source import open_checkpoint
from precheck.errors import ExitCode
from precheck.hunt.hunt import trial_of
from precheck.hunt.request import HuntRequest
from precheck.hunt.saved_search import restore, saved
from precheck.hunt.scans import scanned
from precheck.measure.hunt.images import changed
from precheck.measure.hunt.pictures import drawn
from precheck.measure.hunt.targets import TargetWitness
from precheck.measure.subject.subject import CheckpointSubject
from precheck.records.mechanism import Mechanism
from precheck.records.outcomes.hunt import Pattern, Picture
from precheck.records.prompts import ImagePrompt
from precheck.records.traces import Section
from tests.hunt.against_random import ignore
from tests.hunt.image_plants import LIMIT, PATCH
from tests.hunt.plants import Kind, Plant, Planted, build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precheck.measure.hunt.trial import Trial
    from tests.shell import Shell

_PLANT = Plant(kind=Kind.IMAGE, architecture="Qwen2VL", seed=4, vocab_size=500)
_REQUEST = HuntRequest(minutes=10, is_quick=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a tower is that breaks on images of some sizes."""
    return tmp_path_factory.mktemp("tower") / "model"


@pytest.fixture(scope="module")
def planted(folder: Path) -> Planted:
    return build(_PLANT, folder)


@pytest.fixture(scope="module")
def witness(folder: Path, planted: Planted) -> TargetWitness:
    """Of a scan of it."""
    assert planted.trigger
    found = TargetWitness(_REQUEST.dtype)
    scanned(_subject(folder), _REQUEST, witness=found, prompts=None, observe=ignore)
    return found


@pytest.fixture
def trial(folder: Path, witness: TargetWitness) -> Iterator[Trial]:
    with trial_of(_subject(folder), _REQUEST, witness, observe=ignore) as made:
        yield made


def _subject(folder: Path) -> CheckpointSubject:
    return CheckpointSubject(open_checkpoint(str(folder), observe=ignore))


def scores_of_tower(trial: Trial) -> float:
    """The largest score of a tower in all images that were tried."""
    return max(
        value
        for target, value in zip(trial.evaluator.targets, trial.archive.values(), strict=True)
        if (target.section, target.mechanism) == (Section.VISION, Mechanism.ATTENTION_SCORES)
    )


def test_only_an_image_with_both_distances_breaks_the_tower(trial: Trial, planted: Planted) -> None:
    rows, columns = planted.trigger
    for width, height in ((560, 560), (columns * PATCH, rows // 2 * PATCH)):
        trial.run_picture(Picture(width=width, height=height))
        assert scores_of_tower(trial) < LIMIT
    trial.run_picture(Picture(width=(columns + 3) * PATCH, height=(rows + 3) * PATCH))
    assert scores_of_tower(trial) > LIMIT


def test_figures_of_an_image_are_those_of_a_scan(
    trial: Trial, folder: Path, tmp_path: Path
) -> None:
    picture = Picture(width=84, height=56, pattern=Pattern.CHECKS, noise=0.3)
    trial.run_picture(picture)
    numbers = range(len(trial.evaluator.targets))
    values = [trial.archive.best(number) for number in numbers]
    found = {
        trial.evaluator.targets[number].key: catch.value
        for number, catch in zip(numbers, values, strict=True)
        if catch is not None
    }
    assert any(trial.evaluator.targets[number].section is Section.VISION for number in numbers)
    image = tmp_path / "image.png"
    drawn(picture).save(image)
    again = TargetWitness(_REQUEST.dtype)
    (catch, *_) = (each for each in values if each is not None)
    assert catch.text is not None
    prompts = [ImagePrompt(text=catch.text, images=(str(image),))]
    scanned(_subject(folder), _REQUEST, witness=again, prompts=prompts, observe=ignore)
    measured = {target.key: target.probes_abs_max for target in again.targets("eager")}
    for target in trial.evaluator.targets:
        if target.mechanism is not Mechanism.LOGITS:  # a search computes those of the last position
            assert measured[target.key] == pytest.approx(found[target.key], rel=1e-6), target.key


def test_text_is_not_changed_for_an_operation_of_the_tower(trial: Trial) -> None:
    sections = {trial.evaluator.targets[number].section for number in trial.aims()}
    assert sections == {Section.DECODER} | sections - {Section.VISION, Section.PROJECTOR}
    with_images = {trial.evaluator.targets[number].section for number in trial.aims(of_images=True)}
    assert Section.VISION in with_images


def test_a_saved_search_keeps_images(trial: Trial, folder: Path, witness: TargetWitness) -> None:
    trial.run_picture(Picture(width=56, height=84, contrast=2.0, colour=(1.0, 0.5, 0.0)))
    text = saved(trial, model="m", done=set())
    with trial_of(_subject(folder), _REQUEST, witness, observe=ignore) as other:
        restore(other, json.loads(text), model="m")
        assert other.archive.images == trial.archive.images
        assert other.archive.values() == trial.archive.values()


def test_an_image_is_drawn_from_its_numbers() -> None:
    white = np.asarray(drawn(Picture(width=40, height=20, pattern=Pattern.FLAT, brightness=1.0)))
    assert white.shape == (20, 40, 3)
    assert (white == 255).all()
    checks = np.asarray(drawn(Picture(width=8, height=8, pattern=Pattern.CHECKS, period=4)))
    assert set(checks.flatten()) == {0, 255}
    assert (checks[:2, :2] == checks[0, 0]).all()
    assert checks[0, 0, 0] != checks[0, 2, 0]
    noisy = Picture(width=64, height=64, pattern=Pattern.FLAT, noise=0.1, seed=3)
    pixels = np.asarray(drawn(noisy)).astype(float)
    assert pixels.std() == pytest.approx(0.1 * 127.5, rel=0.05)
    assert (pixels == np.asarray(drawn(noisy))).all()
    red = np.asarray(drawn(Picture(width=64, height=64, colour=(1.0, 0.0, 0.0))))
    assert red[..., 0].max() > 200
    assert not red[..., 1:].any()


def test_a_change_is_one_that_can_be_drawn() -> None:
    generator = torch.Generator().manual_seed(1)
    picture, seen = Picture(width=56, height=56), set()
    for _ in range(60):
        picture = changed(picture, generator)
        seen.add((picture.width, picture.height, picture.pattern, picture.noise))
        assert min(picture.width, picture.height) >= 28
        assert -1.0 <= picture.brightness <= 1.0
    assert len(seen) > 20
    assert drawn(picture).size == (picture.width, picture.height)


def test_an_image_size_is_found_and_saved(shell: Shell, folder: Path, planted: Planted) -> None:
    ended = shell(
        str(folder), "--minutes", "10", "--mechanism", "attention_scores", "--first", "--quick",
        "-o", "worst.jsonl", command="hunt",
    )  # fmt: skip
    assert ended.code == ExitCode.GATE_FAILS, ended.err
    assert planted.module in ended.out
    assert "pixels" in ended.out
    lines = (shell.folder / "worst.jsonl").read_text(encoding="utf-8").splitlines()
    named = [name for line in lines for name in json.loads(line).get("images", ())]
    assert named
    assert all((shell.folder / name).is_file() for name in named)
    again = shell(
        str(folder), "--prompts", "worst.jsonl", "--dtype", "float16", "--attn", "eager",
        command="scan",
    )  # fmt: skip
    assert "overflow" in again.out
    assert planted.module in again.out
