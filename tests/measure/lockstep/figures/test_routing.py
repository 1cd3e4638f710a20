"""Tokens that a mixture of experts sent elsewhere are left out, and so is all that reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from precheck.measure.lockstep.figures.routing import SameRouting, experts
from precheck.measure.probes.batch import Batch
from precheck.measure.watch.op_kinds import ARGMAX, TOPK
from precheck.measure.watch.segment import OpNode, Segment
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.traces import Probe, Section
from tests.measure.scans import run_of
from tests.tiny_models import VOCAB_SIZE, save_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

ENCODER, DECODER = Section.ENCODER, Section.DECODER


def segment(*routes: Tensor, op: str = TOPK) -> Segment:
    return Segment(
        routes=[(node(index, op, chosen), chosen) for index, chosen in enumerate(routes)]
    )


def node(index: int, op: str, chosen: Tensor) -> OpNode:
    return OpNode(
        index=index,
        module="router",
        op=op,
        ordinal=index,
        inputs=(),
        shape=tuple(chosen.shape),
        dtype=None,
        is_cast=False,
        has_mask_scalar=False,
        filename="router.py",
        line=1,
    )


def sent_elsewhere(routing: SameRouting, position: int, section: Section, length: int) -> None:
    """Every row's token at ``position`` goes to another expert."""
    chosen = torch.zeros(2, length, 1, dtype=torch.long)
    other = chosen.clone()
    other[0, position] = 1
    routing.enter(section)
    routing.add(segment(chosen), segment(other), section)


def batch(*, target: int | None = None, padded: bool = False) -> Batch:
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    return Batch(
        probes=tuple(
            Probe(name=str(row), kind="text", num_tokens=3 if padded and row == 0 else 4)
            for row in range(2)
        ),
        input_ids=torch.zeros(2, 4, dtype=torch.long),
        attention_mask=mask if padded else None,
        decoder_input_ids=None if target is None else torch.zeros(2, target, dtype=torch.long),
    )


def rows(routing: SameRouting) -> list[list[int]]:
    assert routing.rows is not None
    return [row.int().tolist() for row in routing.rows]


def test_later_tokens_of_a_decoder_attend_to_one_that_was_sent_elsewhere() -> None:
    routing = SameRouting(batch(padded=True), is_causal=True)
    sent_elsewhere(routing, 2, DECODER, 4)
    assert rows(routing) == [[1, 0, 1], [1, 1, 1, 1]]
    routing.enter(DECODER)
    assert rows(routing) == [[1, 0, 0], [1, 1, 1, 1]]
    assert routing.tokens is not None
    assert routing.tokens.int().tolist() == [1, 0, 0, 1, 1, 1, 1]


def test_all_tokens_of_an_encoder_and_its_decoder_do() -> None:
    routing = SameRouting(batch(target=2), is_causal=True)
    sent_elsewhere(routing, 2, ENCODER, 4)
    assert rows(routing) == [[1, 1, 0, 1], [1, 1, 1, 1]]
    routing.enter(ENCODER)
    assert rows(routing) == [[0, 0, 0, 0], [1, 1, 1, 1]]
    routing.enter(DECODER)
    assert rows(routing) == [[0, 0], [1, 1]]


def test_the_decoders_own_routers_count_too() -> None:
    routing = SameRouting(batch(target=2), is_causal=True)
    sent_elsewhere(routing, 1, DECODER, 2)
    assert rows(routing) == [[1, 0], [1, 1]]


def test_another_number_of_tokens_is_a_towers() -> None:
    routing = SameRouting(batch(), is_causal=True)
    sent_elsewhere(routing, 1, DECODER, 7)
    assert routing.tokens is None


def test_the_last_topk_counts_and_every_argmax() -> None:
    groups, chosen = torch.tensor([[0], [1]]), torch.tensor([[3, 1], [0, 2]])
    assert experts(Segment()) is None
    found = experts(segment(groups, chosen))
    assert found is not None
    assert found.tolist() == [[1, 3], [0, 2]]
    found = experts(segment(torch.tensor([[3, 0]]), torch.tensor([[1, 2]]), op=ARGMAX))
    assert found is not None
    assert found.tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_router_by_argmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_seen: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SwitchTransformersForConditionalGeneration(
            SwitchTransformersConfig(
                vocab_size=VOCAB_SIZE,
                d_model=64,
                d_kv=16,
                d_ff=96,
                num_layers=2,
                num_sparse_encoder_layers=2,
                num_decoder_layers=2,
                num_sparse_decoder_layers=2,
                num_heads=4,
                num_experts=4,
                tie_word_embeddings=False,
            )
        ).eval()
    model.config.decoder_start_token_id = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lm_head" in name:
                parameter.mul_(3.0)
            if "router" in name:  # nearly a tie
                parameter.copy_(parameter[:1] + 1e-2 * parameter)
    save_checkpoint(model, tmp_path, tokenizer=True)
    if not is_seen:
        monkeypatch.setattr("precheck.measure.watch.ops.ARGMAX", "no operation")
    report = scan(tmp_path, dtypes=["bfloat16"], attn_implementations=["eager"])
    run = run_of(report, "bfloat16", "eager")
    assert all((layer.routing_agreement is not None) == is_seen for layer in run.layers)
    assert run.verdict is (Verdict.SAFE if is_seen else Verdict.DEGRADED)
