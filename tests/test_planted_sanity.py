"""The catalogue against a brute-force oracle, and the healthy models against their own claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

from precheck.records.mechanism import Mechanism
from tests.oracle import first_fault, modules_with_nonfinite_output, record
from tests.planted import FAULTS, PlantedFault, fault_inputs, loaded, planted, planted_checkpoint
from tests.tiny_models import (
    TINY,
    VOCAB_SIZE,
    architectures,
    attn_implementations,
    save_checkpoint,
    tiny,
    tiny_inputs,
    tiny_tokenizer,
)

if TYPE_CHECKING:
    from pathlib import Path


CONFIGURATIONS = [
    (name, dtype, attn_implementation)
    for name in TINY
    for dtype in (torch.float16, torch.bfloat16)
    for attn_implementation in attn_implementations(name)
]


@pytest.mark.parametrize("fault", planted(FAULTS), ids=lambda fault: fault.name)
def test_the_planted_operation_is_the_first_that_breaks(
    fault: PlantedFault, tmp_path: Path
) -> None:
    reference, subject = loaded(fault, planted_checkpoint(fault, tmp_path))
    for inputs in (
        fault_inputs(fault),
        fault_inputs(fault, batch=2, length=40, seed=1),
    ):
        found = first_fault(reference, subject, inputs)
        assert found is not None
        assert (found.module, found.op) == (fault.module, fault.op)
        assert found.source == fault.source
        assert fault.code in found.code
        assert found.absorbed == fault.absorbed
        assert found.reads_nonfinite_weight == (fault.mechanism is Mechanism.WEIGHTS)


@pytest.mark.parametrize("fault", planted(FAULTS), ids=lambda fault: fault.name)
def test_float32_is_finite_and_a_fault_reaches_real_tokens_unless_absorbed(
    fault: PlantedFault, tmp_path: Path
) -> None:
    reference, subject = loaded(fault, planted_checkpoint(fault, tmp_path))
    inputs = fault_inputs(fault)
    with torch.no_grad():
        assert reference(**inputs).logits.isfinite().all()
        logits = subject(**inputs).logits
    real = logits if fault.architecture == "t5" else logits[inputs["attention_mask"].bool()]
    assert bool(real.isfinite().all()) == fault.absorbed


def test_the_catalogue_has_every_mechanism_that_one_op_can_produce() -> None:
    of_kernels_and_formats = {Mechanism.ACCUMULATION, Mechanism.STORING}
    assert {fault.mechanism for fault in FAULTS} == set(Mechanism) - of_kernels_and_formats
    assert len({fault.architecture for fault in FAULTS}) >= 8
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert any(fault.absorbed for fault in FAULTS)
    assert any(fault.op == "aten._to_copy" for fault in FAULTS)


@pytest.mark.parametrize(
    ("name", "dtype", "attn_implementation"), architectures(CONFIGURATIONS, unpinned=["gemma2"])
)
def test_healthy_models_are_ordinary_in_16_bits(
    name: str, dtype: torch.dtype, attn_implementation: str, tmp_path: Path
) -> None:
    save_checkpoint(tiny(name), tmp_path, tokenizer=False)
    reference, subject = (
        type(tiny(name)).from_pretrained(
            tmp_path, dtype=each, attn_implementation=attn_implementation
        )
        for each in (torch.float32, dtype)
    )
    assert subject.config._attn_implementation == attn_implementation  # noqa: SLF001
    for left_padded in (False, True):
        inputs = tiny_inputs(name, length=24, left_padded=left_padded)
        assert first_fault(reference, subject, inputs) is None
        expected, actual = record(reference, inputs), record(subject, inputs)
        real = inputs["attention_mask"].bool() | (name == "t5")
        last = max(expected.layers, key=list(expected.layers).index)
        assert _relative_error(actual.layers[last][real], expected.layers[last][real]) < 0.1
        assert _divergence(actual.logits[real], expected.logits[real]) < 0.01
        assert expected.logits[real].std() > 1


@pytest.mark.parametrize("name", architectures(TINY))
def test_the_same_seed_gives_the_same_model_and_another_gives_another(name: str) -> None:
    state = torch.random.get_rng_state()
    one, same, other = (
        torch.nn.utils.parameters_to_vector(tiny(name, seed=seed).parameters())
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_tokenizer_fits_the_vocabulary_and_survives_saving(tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2"), tmp_path, tokenizer=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the self-attention 上海 🙂\n"
    ids = tokenizer(text).input_ids
    assert len(tokenizer) == VOCAB_SIZE
    assert ids[0] == tokenizer.bos_token_id
    assert max(ids) < VOCAB_SIZE
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.decode([0]) == "!"
    assert tiny_tokenizer()(text).input_ids == ids
    chat = [{"role": "user", "content": "hi"}]
    assert "user: hi" in tokenizer.apply_chat_template(chat, tokenize=False)


@pytest.mark.parametrize(
    ("name", "victim"),
    [
        ("qwen2-scores", "model.layers.1.self_attn.o_proj"),
        ("qwen2-product", "model.layers.1.mlp.down_proj"),
        ("qwen2-residual", "model.layers.1"),
    ],
)
def test_module_hooks_alone_would_name_the_victim(name: str, victim: str, tmp_path: Path) -> None:
    fault = next(each for each in FAULTS if each.name == name)
    _, subject = loaded(fault, planted_checkpoint(fault, tmp_path))
    broken = modules_with_nonfinite_output(subject, fault_inputs(fault))
    assert broken[0] == victim


def _relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean over tokens of the error's norm over the reference's."""
    error = (actual.double() - expected.double()).norm(dim=-1)
    return float((error / expected.double().norm(dim=-1)).mean())


def _divergence(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Mean KL(expected || actual) in nats."""
    wanted, got = (each.double().log_softmax(dim=-1) for each in (expected, actual))
    return float((wanted.exp() * (wanted - got)).sum(dim=-1).mean())
