"""However the batches are shared out, what is merged is the report of one process."""

from __future__ import annotations

import pickle
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from precheck.pipeline import scan
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from precheck.records.report import Report


class Share:
    """One process of several that run one after the other; the last receives all results."""

    def __init__(self, batches: set[int], sent: list[bytes]) -> None:
        self._batches, self._sent = batches, sent

    def share(self, sizes: list[int]) -> list[int]:
        return sorted(self._batches & set(range(len(sizes))))

    def exchange(self, result: Any) -> list[Any]:
        self._sent.append(pickle.dumps(result))  # as it travels to other processes
        return [pickle.loads(pickled) for pickled in self._sent]  # noqa: S301  our own


def shared_scan(
    model: str, shares: list[set[int]], monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Report:
    sent: list[bytes] = []
    with monkeypatch.context() as patched:
        for share in shares:

            @contextmanager
            def processes(_device: str, share: set[int] = share) -> Iterator[Share]:
                yield Share(share, sent)

            patched.setattr("precheck.measure.runs.processes", processes)
            report = scan(model, dtypes=("float16",), **options)
    return report


SHARES = [
    [{0, 2, 4, 6, 8}, {1, 3, 5, 7, 9}],
    [{0, 1, 2}, {3, 4, 5, 6, 7, 8, 9}],
    [{9, 0}, {1, 8, 3}, {2, 7}, {4, 5, 6}],
    [set(range(10)), set()],
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    mixture = tmp_path_factory.mktemp("mixture")
    save_checkpoint(tiny("mixtral"), mixture, tokenizer=True)
    return {"qwen2-eager": "demo:qwen2-eager", "mixtral": str(mixture)}


@pytest.fixture(scope="module")
def alone(models: dict[str, str]) -> Callable[[str], dict[str, Any]]:
    """The report of one process, by the model's name."""
    return cache(lambda name: scan(models[name], dtypes=("float16",)).to_dict())


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("name", ["qwen2-eager", "mixtral"])
def test_every_way_to_share_gives_the_same_report(
    name: str,
    shares: list[set[int]],
    models: dict[str, str],
    alone: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert len(alone(name)["probes"]) > 4
    assert shared_scan(models[name], shares, monkeypatch).to_dict() == alone(name)


def test_a_share_that_is_missing_is_missed(
    models: dict[str, str],
    alone: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = shared_scan(models["mixtral"], [{0, 2}], monkeypatch).to_dict()
    assert report != alone("mixtral")
    assert any("not finished" in probe for probe in report["coverage"]["probes_not_run"])


def test_a_share_that_broke_off_makes_the_whole_incomplete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    is_first = True

    def meddle(event: Any) -> None:
        nonlocal is_first
        if is_first and getattr(event, "unit", "") == "model.layers.1":
            is_first = False
            file.write_bytes(content)

    shares = [set(range(0, 10, 2)), set(range(1, 10, 2))]
    report = shared_scan(str(tmp_path), shares, monkeypatch, observe=meddle)
    assert not is_first
    assert not report.complete
    assert "weights file changed" in str(report.incomplete_reason)
