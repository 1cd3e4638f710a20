"""Inputs of experts in a format: what plain transformers computes, and what is named.

Experts keep their matrices stacked in parameters of one module, and multiply with them in ways of
their own: grouped products, with biases or without, a batched one, one expert after the other. The
oracle multiplies expert by expert with matrices and inputs that are rounded in these tests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import torch
import transformers
from torch import nn

from precheck.errors import UnsupportedConfigurationError
from precheck.facts.formats import weight_format
from precheck.measure.format_search import FormatSearch
from precheck.measure.formats.numbers import as_stored
from precheck.measure.formats.parts import Parts
from precheck.measure.formats.stored_products import StackedMatrix, StoredProducts
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.format_loss import Cause
from tests.measure.formats.plain_experts import multiply_experts
from tests.measure.formats.plain_weights import PlainLayer, PlainWeights, fp8_matrix, fp8_rows
from tests.measure.formats.test_plants import culprits_of, healthy, llama_like, run_with, scanned
from tests.measure.lockstep.test_truth import same_bits
from tests.measure.scans import passes, plain_inputs
from tests.tiny_models import HIDDEN_SIZE, NUM_HEADS, save_checkpoint, tiny_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedConfig

NUM_EXPERTS = 4
HEAD_DIM = HIDDEN_SIZE // NUM_HEADS


def small(config_class: Callable[..., Any], **settings: object) -> PreTrainedConfig:
    config = llama_like(config_class, num_experts_per_tok=2, **settings)
    config.num_hidden_layers = 2
    if hasattr(config, "layer_types"):
        config.layer_types = config.layer_types[:2]
    return config


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen3_moe": lambda: small(
        transformers.Qwen3MoeConfig,
        num_experts=NUM_EXPERTS,
        moe_intermediate_size=48,
        head_dim=HEAD_DIM,
    ),
    "gpt_oss": lambda: small(
        transformers.GptOssConfig, num_local_experts=NUM_EXPERTS, head_dim=HEAD_DIM
    ),
    "llama4": lambda: small(
        transformers.Llama4TextConfig,
        num_local_experts=NUM_EXPERTS,
        intermediate_size_mlp=96,
        interleave_moe_layer_step=1,
        head_dim=HEAD_DIM,
    ),
    "jetmoe": lambda: small(
        transformers.JetMoeConfig, num_local_experts=NUM_EXPERTS, kv_channels=HEAD_DIM
    ),
    "granitemoe": lambda: small(transformers.GraniteMoeConfig, num_local_experts=NUM_EXPERTS),
}


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {"fp8": fp8_rows, "fp8_tensor": fp8_matrix}


def multiply_in_fp8(model: nn.Module, rounded: Callable[[Tensor], Tensor]) -> None:
    multiply_experts(model, weights=rounded, inputs=fp8_rows)
    for module in list(model.modules()):
        for key, layer in module.named_children():
            if not isinstance(layer, nn.Linear) or key == "lm_head":
                continue
            if layer.out_features == NUM_EXPERTS:  # a router
                continue
            setattr(module, key, PlainLayer(layer, PlainWeights(rounded, fp8_rows)))


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    ("name", "format_"), [*((name, "fp8") for name in CONFIGS), ("qwen3_moe", "fp8_tensor")]
)
def test_experts_are_what_plain_products_of_rounded_inputs_give(
    name: str, format_: str, tmp_path: Path
) -> None:
    saved = tiny_of(CONFIGS[name]())
    with torch.no_grad():  # one expert is far larger: the others have scales of their own
        for key, parameter in saved.named_parameters():
            if parameter.dim() == 3 and key.endswith(("down_proj", "output_linear.weight")):
                parameter[1] *= 30
    save_checkpoint(saved, tmp_path, tokenizer=True)
    attention = "eager" if name == "gpt_oss" else "sdpa"
    with mock.patch.object(FormatSearch, "run", return_value=None), passes() as found:
        report = scan(
            tmp_path,
            dtypes=["bfloat16"],
            attn_implementations=[attention],
            quantizations=[format_],
            quick=True,
        )
    run = run_with(report, f"q:{format_}")
    assert run.failure is None
    model = type(saved).from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation=attention
    )
    multiply_in_fp8(model, WEIGHTS[format_])
    of_run = [one for one in found if one.skeleton.configuration.quantization == format_]
    assert of_run
    for one in of_run:
        with torch.no_grad():
            logits = model(**plain_inputs(one.batch), use_cache=False).logits
        assert same_bits(one.final[0], logits), one.batch.probes


# A planted outlier in what the second product of experts reads.

EXPERTS: dict[str, Callable[[], PreTrainedConfig]] = {
    "qwen2_moe": lambda: llama_like(
        transformers.Qwen2MoeConfig,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        shared_expert_intermediate_size=32,
    ),
    "mixtral": lambda: llama_like(transformers.MixtralConfig, num_local_experts=NUM_EXPERTS),
    "qwen3_moe": lambda: llama_like(
        transformers.Qwen3MoeConfig,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=2,
        moe_intermediate_size=48,
        head_dim=HEAD_DIM,
    ),
    "olmoe": lambda: llama_like(
        transformers.OlmoeConfig, num_experts=NUM_EXPERTS, num_experts_per_tok=2
    ),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_an_outlier_inside_experts_is_named(name: str, tmp_path: Path) -> None:
    with mock.patch.dict("tests.measure.formats.test_plants.CONFIGS", EXPERTS):
        model = healthy(name)
    experts: Any = model.get_submodule("model.layers.3.mlp.experts")
    channel, width = 11, experts.down_proj.shape[-1]
    with torch.no_grad():
        experts.gate_up_proj[:, width + channel] *= 1000
        experts.down_proj[..., channel] /= 1000
        experts.down_proj.mul_(2.5)  # so that it matters
    report = scanned(model, tmp_path, quantizations=("int8", "int8_weight"))
    culprits, part = culprits_of(run_with(report, "q:int8"))
    assert part.part == "model.layers.3.mlp.experts.down_proj activations"
    assert (part.layer, part.head, part.channel) == (3, None, channel)
    assert part.cause is Cause.CHANNEL
    assert culprits.left_out == ("model.layers.3.mlp.experts.down_proj",)
    assert culprits.kl_divergence_left_out is not None
    assert culprits.kl_divergence_left_out < 0.05
    assert run_with(report, "q:int8_weight").format_culprits is None


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERTS)
def test_healthy_experts_are_silent_in_8_bits(name: str, tmp_path: Path) -> None:
    with mock.patch.dict("tests.measure.formats.test_plants.CONFIGS", EXPERTS):
        report = scanned(healthy(name), tmp_path, quantizations=("fp8", "int8", "mxfp8"))
    assert [run.name for run in report.runs if run.verdict is not Verdict.SAFE] == []


# The products one by one.


def multiplied(read: Callable[[Tensor, Tensor], Tensor], *, parts: Parts | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(NUM_EXPERTS, 8, 16, generator=generator).bfloat16()
    values = torch.randn(3, 16, generator=generator).bfloat16()
    matrix = StackedMatrix(
        "experts.up", weight, torch.stack([fp8_rows(one.float()) for one in weight])
    )
    with StoredProducts([matrix], "fp8", parts=parts):
        return read(values, weight)


def test_a_view_is_taken_of_the_stored_form() -> None:
    parts = Parts()
    found = multiplied(lambda values, weight: values @ weight[2].T, parts=parts)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(NUM_EXPERTS, 8, 16, generator=generator).bfloat16()
    values = torch.randn(3, 16, generator=generator).bfloat16()
    numbers = weight_format("fp8").activations
    assert numbers is not None
    expected = as_stored(values.float(), numbers) @ fp8_rows(weight[2].float()).T
    assert same_bits(found, expected.bfloat16())
    assert found.dtype is torch.bfloat16
    assert list(parts.stats) == ["experts.up.activations"]


def test_other_operations_see_the_weight_itself() -> None:
    found = multiplied(lambda values, weight: weight[0] * 2 + (values @ weight[1].T).sum())
    assert found.dtype is torch.bfloat16


def test_a_copied_matrix_is_refused() -> None:
    chosen = torch.tensor([1, 1, 3])
    with pytest.raises(UnsupportedConfigurationError, match=r"experts\.up is read by aten::index"):
        multiplied(lambda values, weight: torch.bmm(weight[chosen], values.unsqueeze(-1)))
