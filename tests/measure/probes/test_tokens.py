"""Probes as batches: how many, how long, what is left out, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from precheck.checkpoint.source import open_checkpoint
from precheck.errors import UsageError
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.builtin import BUILTIN, TextPrompt
from precheck.measure.probes.media_batches import Processor
from precheck.measure.probes.rows import cut_or_filled
from precheck.measure.probes.tokens import (
    Plan,
    Reach,
    plan_probes,
    with_decoder_input,
)
from precheck.measure.probes.vocabulary import Vocabulary, read_vocabulary
from precheck.pipeline import scan
from precheck.records.traces import Probe
from tests.tiny_models import (
    BOS,
    PAD,
    TINY,
    VOCAB_SIZE,
    architectures,
    save_checkpoint,
    tiny,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path

SPELLED = Vocabulary(size=VOCAB_SIZE, tokenizer=tiny_tokenizer())
NO_MEDIA = Processor(None, accepts={"input_ids"}, vocab_size=VOCAB_SIZE)
MUTE = Vocabulary(size=VOCAB_SIZE, problem="no tokenizer: none")


def plan(vocabulary: Vocabulary = SPELLED, **options: Any) -> Plan:
    given_options = {
        "prompts": None,
        "builtin_probes": options.get("prompts") is None,
        "quick": False,
        "max_context": 1024,
        "reach": Reach(),
    }
    return plan_probes(vocabulary, NO_MEDIA, **{**given_options, **options})


def real_ids(batch: Batch) -> list[list[int]]:
    return [
        row[-probe.num_tokens :].tolist()
        for row, probe in zip(batch.input_ids, batch.probes, strict=True)
    ]


def test_the_built_in_probes_are_four_batches_of_about_a_thousand_tokens() -> None:
    whole = plan()
    assert whole.not_run == ()
    assert len(whole.probes) >= 14
    assert sum(probe.num_tokens for probe in whole.probes) == pytest.approx(1024, rel=0.05)
    even, more, padded, long = whole.batches
    for batch in (even, more):
        assert not batch.is_padded
        assert {probe.num_tokens for probe in batch.probes} == {batch.input_ids.shape[1]}
    assert padded.is_padded
    assert len({probe.num_tokens for probe in padded.probes}) == len(padded.probes)
    assert len(long.probes) == 1
    assert long.input_ids.shape[1] > 3 * even.input_ids.shape[1]
    names = [probe.name for probe in whole.probes]
    assert len(set(names)) == len(names)


def test_a_padded_batch_is_padded_on_the_left() -> None:
    (padded,) = (batch for batch in plan().batches if batch.is_padded)
    assert padded.attention_mask is not None
    for row, probe in enumerate(padded.probes):
        num_pads = padded.input_ids.shape[1] - probe.num_tokens
        assert padded.input_ids[row, :num_pads].tolist() == [PAD] * num_pads
        assert padded.attention_mask[row].tolist() == [0] * num_pads + [1] * probe.num_tokens
    assert padded.num_real_tokens == int(padded.attention_mask.sum())


def test_special_tokens_are_those_the_tokenizer_really_adds() -> None:
    by_name = {
        probe.name: ids
        for batch in plan().batches
        for probe, ids in zip(batch.probes, real_ids(batch), strict=True)
    }
    assert by_name["plain"][0] == BOS
    assert by_name["without_bos"][0] != BOS
    assert by_name["chat"][0] != BOS
    assert SPELLED.tokenizer.decode(by_name["chat"]).startswith("user: ")
    for prompt in BUILTIN:
        spelled = SPELLED.tokenizer.decode(by_name[prompt.name], skip_special_tokens=True)
        assert prompt.kind == "chat" or spelled.startswith(prompt.text[:10])


def test_the_probes_that_broke_real_models_are_there() -> None:
    texts = [prompt.text for prompt in BUILTIN]
    assert "上海有个非常出名的地方，" in texts  # noqa: RUF001  as it was typed
    assert "the self-attention is important for transformer because" in texts
    assert any(text.startswith("\n") for text in texts)


def test_quick_is_one_short_batch() -> None:
    for vocabulary in (SPELLED, MUTE):
        (batch,) = plan(vocabulary, quick=True).batches
        assert batch.num_real_tokens == batch.input_ids.numel() <= 128


def test_without_a_tokenizer_token_ids_cover_the_vocabulary() -> None:
    whole = plan(MUTE)
    assert [batch.is_padded for batch in whole.batches] == [False, False, True, False]
    assert {probe.kind for probe in whole.probes} == {"token_ids"}
    assert len({probe.name for probe in whole.probes}) == len(whole.probes)
    assert whole.not_run == ("text probes (no tokenizer: none)",)
    rows = [row for batch in whole.batches[:2] for row in batch.input_ids]
    assert {token for row in rows for token in row.tolist()} == set(range(VOCAB_SIZE))
    for row in rows:  # each row reaches from one end to the other
        assert row.max() - row.min() > 0.9 * VOCAB_SIZE


@pytest.mark.parametrize("name", architectures(TINY))
def test_a_checkpoint_without_tokenizer_files_has_no_tokenizer(name: str, tmp_path: Path) -> None:
    save_checkpoint(tiny(name, num_layers=1), tmp_path, tokenizer=False)
    checkpoint = open_checkpoint(str(tmp_path), observe=lambda _: None)
    vocabulary = read_vocabulary(checkpoint, size=VOCAB_SIZE)
    assert vocabulary.tokenizer is None
    assert vocabulary.problem is not None


def test_the_checkpoints_own_tokenizer_is_used(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2", num_layers=1), tmp_path, tokenizer=True)
    checkpoint = open_checkpoint(str(tmp_path), observe=lambda _: None)
    vocabulary = read_vocabulary(checkpoint, size=VOCAB_SIZE)
    prompt = TextPrompt(name="x", text="上海 abc")
    assert vocabulary.encode(prompt) == SPELLED.encode(prompt)
    assert vocabulary.decode([0, 0]) == "!!"
    assert read_vocabulary(checkpoint, size=50).tokenizer is None


def test_tokens_the_model_has_no_embedding_for_are_never_run(tmp_path: Path) -> None:
    # A chat template may use a token that was added after the embedding was made.
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = "<|im_start|>{{ messages[0]['content'] }}"
    save_checkpoint(tiny("qwen2", num_layers=1), tmp_path, tokenizer=False)
    tokenizer.save_pretrained(tmp_path)
    report = scan(tmp_path, dtypes=["float32"], attn_implementations=["sdpa"])
    assert [run.failure for run in report.runs] == [None]


def test_a_context_too_short_shortens_the_probes() -> None:
    whole = plan(max_context=20)
    assert max(probe.num_tokens for probe in whole.probes) == 20
    assert all(batch.input_ids.shape[1] <= 20 for batch in whole.batches)


def test_prompts_of_one_length_run_together_unpadded() -> None:
    batches = plan(prompts=[[1, 2, 3], [4, 5], [6, 7, 8], "abc"]).batches[:-1]
    assert all(not batch.is_padded for batch in batches)
    rows = {
        probe.name: ids
        for batch in batches
        for probe, ids in zip(batch.probes, real_ids(batch), strict=True)
    }
    assert rows["prompt_1"] == [1, 2, 3]
    assert rows["prompt_2"] == [4, 5]
    assert rows["prompt_3"] == [6, 7, 8]
    assert rows["prompt_4"] == SPELLED.encode(TextPrompt(name="", text="abc"))
    lengths = [batch.input_ids.shape[1] for batch in batches]
    assert len(set(lengths)) == len(lengths)


@pytest.mark.parametrize(
    ("prompts", "padded"),
    [
        ([[1, 2, 3], [4, 5], [6, 7, 8]], [[4, 5], [6, 7, 8]]),
        ([[1, 2, 3, 4], [5, 6, 7, 8]], [[5, 6], [5, 6, 7, 8]]),
        ([[1], [2]], None),
        ([[1] * 300, [2] * 280, [3] * 7], [[3] * 7, [2] * 32]),
        ([[1] * length for length in range(2, 9)], [[1] * length for length in range(2, 6)]),
    ],
)
def test_prompts_are_padded_together_once_more(
    prompts: list[list[int]], padded: list[list[int]] | None
) -> None:
    *_, last = plan(prompts=prompts).batches
    assert last.is_padded == (padded is not None)
    if padded is not None:
        assert list(real_ids(last)) == padded
        assert [row.input_ids.tolist() for row in last.rows()] == [[ids] for ids in padded]
        assert {probe.kind for probe in last.probes} == {"padded"}
    assert all(not batch.is_padded for batch in plan(prompts=prompts, quick=True).batches)


def test_prompts_replace_the_built_in_probes_unless_asked() -> None:
    names = [probe.name for probe in plan(prompts=[[1, 2]]).probes]
    assert names == ["prompt_1", "padded_1", "padded_2"]
    both = plan(prompts=[[1, 2]], builtin_probes=True).probes
    assert both[0].name == "prompt_1"
    assert len(both) == len(plan().probes) + 1


def test_prompts_are_known_as_the_users_own() -> None:
    both = plan(prompts=[[1, 2]], builtin_probes=True).probes
    assert [probe.name for probe in both if probe.is_own] == ["prompt_1"]


def test_many_prompts_are_several_batches() -> None:
    whole = plan(prompts=[[1] * 300] * 8)
    assert [len(batch.probes) for batch in whole.batches] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no prompts"),
        ([[]], "prompt 1 is empty"),
        ([[1], [VOCAB_SIZE]], "prompt 2 has token ids outside"),
        ([[-1]], "prompt 1 has token ids outside"),
        ([[1] * 1025], "1025 tokens"),
    ],
)
def test_prompts_that_cannot_run_are_refused(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(prompts=prompts)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(UsageError, match="prompt 1 is text, but no tokenizer"):
        plan(MUTE, prompts=["text"])


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.integers(1, 30))
def test_rows_are_exactly_as_long_as_asked(ids: list[int], length: int) -> None:
    row = cut_or_filled(ids, length)
    assert len(row) == length
    assert row[: len(ids)] == ids[:length]
    if len(ids) > 1:
        assert all(token in ids[1:] for token in row[1:])


def test_the_target_of_an_encoder_decoder_is_the_end_of_the_input_shifted() -> None:
    batch = Batch(
        probes=(Probe(name="x", kind="text", num_tokens=6),),
        input_ids=torch.tensor([[1, 2, 3, 4, 5, 6]]),
    )
    shifted = with_decoder_input(batch, start_id=9)
    assert shifted.decoder_input_ids is not None
    assert shifted.decoder_input_ids.tolist() == [[9, 4, 5]]
    assert shifted.input_ids is batch.input_ids


def test_odd_tokens_begin_short_texts_between_what_the_tokenizer_adds() -> None:
    *_, batch = plan(reach=Reach(first_tokens=(7, 9))).batches
    assert [probe.name for probe in batch.probes] == ["first_7", "first_9"]
    assert not any(probe.is_ordinary for probe in batch.probes)
    assert batch.input_ids[:, :2].tolist() == [[BOS, 7], [BOS, 9]]


def test_a_text_near_the_context_is_ordinary_and_ids_are_not() -> None:
    *_, batch = plan(reach=Reach(context_tokens=700)).batches
    (probe,) = batch.probes
    assert (probe.num_tokens, probe.is_ordinary) == (700, True)
    *_, batch = plan(MUTE, reach=Reach(context_tokens=700)).batches
    (probe,) = batch.probes
    assert (probe.num_tokens, probe.is_ordinary) == (700, False)


def test_odd_probes_are_few_and_the_rest_is_ordinary() -> None:
    ordinary = {probe.name for probe in plan().probes if probe.is_ordinary}
    assert {"plain", "self_attention", "code", "cjk", "long", "padded_7"} <= ordinary
    assert not {"repeated", "punctuation", "emoji", "vocabulary"} & ordinary


def test_a_text_ends_as_the_tokenizer_ends_it_whatever_its_length() -> None:
    ids = [1, 5, 6, 7, 2]
    assert cut_or_filled(ids, 3, ending=[2]) == [1, 5, 2]
    assert cut_or_filled(ids, 9, ending=[2]) == [1, 5, 6, 7, 5, 6, 7, 5, 2]
    assert cut_or_filled([1, 5, 6], 5, ending=[2]) == [1, 5, 6, 5, 6]
    assert cut_or_filled([2], 3, ending=[2]) == [2, 2, 2]
