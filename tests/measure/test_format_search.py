"""The texts that are run again to find what a format loses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from precheck.measure.format_search import MOST_TOKENS, _texts
from precheck.measure.probes.rows import Row, batch_of
from precheck.measure.probes.user_prompts import _own

if TYPE_CHECKING:
    from precheck.measure.probes.batch import Batch


def prompts(*lengths: int) -> list[Batch]:
    return [
        _own(batch_of([Row(f"prompt_{index}", "text", list(range(length)))]))
        for index, length in enumerate(lengths)
    ]


def texts(batches: list[Batch]) -> list[Batch]:
    inputs: Any = SimpleNamespace(plan=SimpleNamespace(batches=tuple(batches)))
    return _texts(inputs)


def test_prompts_of_nearly_one_length_share_a_batch_and_none_is_left_out() -> None:
    found = texts(prompts(38, 18, 30, 54, 42, 36))
    assert [tuple(batch.input_ids.shape) for batch in found] == [(1, 18), (4, 30), (1, 54)]
    names = [probe.name for batch in found for probe in batch.probes]
    assert names == ["prompt_1", "prompt_2", "prompt_5", "prompt_0", "prompt_4", "prompt_3"]
    for batch in found:
        names_of = [probe.name for probe in batch.probes]
        assert {probe.num_tokens for probe in batch.probes} == {batch.input_ids.shape[1]}
        assert batch.input_ids.tolist() == [list(range(batch.input_ids.shape[1]))] * len(names_of)


def test_a_batch_of_one_length_stays_as_it_is() -> None:
    rows = [Row(f"text_{index}", "text", list(range(48)), is_ordinary=True) for index in range(9)]
    (found,) = texts([batch_of(rows)])
    assert tuple(found.input_ids.shape) == (MOST_TOKENS // 48, 48)
    assert found.probes == batch_of(rows).probes[:5]
