"""What the tables say of torch and transformers, checked against those that are installed.

A release that changes one of these makes a test fail, so that the table is read again.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import modeling_flash_attention_utils as flash
from transformers.integrations import sdpa_attention

from precheck.facts.attention import implementation, names, table
from precheck.facts.devices import find
from precheck.facts.engines import engine
from precheck.facts.hardware import Float16Sums
from precheck.judge.devices import sdpa
from precheck.measure.machine.device_check import float16_sums
from precheck.records.precision import Dtype
from precheck.records.sizes import AttentionFacts
from tests.kernels import chosen_kernel

pytestmark = pytest.mark.pinned("the tables tell what stands in the tested libraries")

SDPA_RULES_READ_FOR = ("2.13",)
"""Releases of torch whose ``sdp_utils.cpp`` was compared with ``judge/devices/sdpa.py``."""


def test_the_kernel_rules_were_read_for_this_torch() -> None:
    release = ".".join(map(str, Version(torch.__version__).release[:2]))
    assert release in SDPA_RULES_READ_FOR, "read sdp_utils.cpp of this release again"


def test_transformers_is_the_one_that_was_read() -> None:
    installed = Version(transformers.__version__).release[:2]
    assert installed == Version(engine("transformers").version).release[:2]


@pytest.mark.parametrize("version", [2, 3, 4])
def test_flash_attention_is_what_transformers_takes_it_for(version: int) -> None:
    row = implementation(f"flash_attention_{version}")
    matrix: dict[str, Any] = flash.FLASH_ATTENTION_COMPATIBILITY_MATRIX[version]
    assert row is not None
    assert row.min_major_in_transformers == matrix.get("cuda_min_major_version")
    assert row.hub_kernel == flash.FLASH_ATTN_KERNEL_FALLBACK[row.name]
    in_transformers = {name for _, name in matrix["supported_devices"]}
    assert {"cuda"} <= in_transformers
    kinds = {"cuda" if kind == "rocm" else kind for kind in row.kinds}
    assert kinds <= in_transformers


def test_every_name_is_one_of_transformers_and_every_name_of_its_is_here() -> None:
    listed = set(names())
    registered = set(transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS) | {"eager"}
    assert listed <= registered | set(flash.FLASH_ATTN_KERNEL_FALLBACK)


def test_class_flags_still_have_these_names() -> None:
    flags = {row.class_flag for row in table().implementation if row.class_flag is not None}
    assert flags
    for flag in flags:
        assert hasattr(transformers.PreTrainedModel, flag)
    assert hasattr(transformers.PreTrainedModel, "_compatible_flash_implementations")


@pytest.mark.parametrize(
    ("name", "has_sdpa"),
    [
        ("Gemma2", False),
        ("GptOss", False),
        ("T5Gemma", False),
        ("VaultGemma", False),
        ("Gemma3", True),
        ("Qwen2", True),
        ("Llama", True),
    ],
)
def test_families_have_or_lack_sdpa_as_the_decision_table_takes_it(
    name: str, has_sdpa: bool
) -> None:
    base = getattr(transformers, f"{name}PreTrainedModel")
    assert vars(base).get("_supports_sdpa", False) is has_sdpa


def test_gpt_oss_works_with_its_own_kernels_alone() -> None:
    compatible = vars(transformers.GptOssPreTrainedModel)["_compatible_flash_implementations"]
    assert "flash_attention_2" not in compatible
    assert "flash_attention_4" in compatible


def test_sdpa_of_transformers_has_no_softcap_and_groups_heads_without_a_mask_alone() -> None:
    code = inspect.getsource(sdpa_attention)
    assert "`sdpa` attention does not support `softcap`" in code
    key = torch.empty(1, 1, 1, 256)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    assert sdpa_attention.use_gqa_in_sdpa(None, key, key)
    assert not sdpa_attention.use_gqa_in_sdpa(mask, key, key)


def test_partial_sums_in_float16_are_allowed_by_default() -> None:
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction
    assert not torch.backends.cuda.matmul.allow_fp16_accumulation
    assert find("T4").float16_sums is Float16Sums.SPLIT_K


def test_torch_can_be_asked_for_bfloat16_without_emulation() -> None:
    assert "including_emulation" in inspect.signature(torch.cuda.is_bf16_supported).parameters


@pytest.mark.parametrize("dtype", list(Dtype))
@pytest.mark.parametrize("head_dim", [16, 80, 128, 256, 512])
@pytest.mark.parametrize("is_masked", [False, True])
def test_the_kernel_on_a_cpu_is_the_one_torch_chooses(
    dtype: Dtype, head_dim: int, is_masked: bool
) -> None:
    attention = AttentionFacts(supported=("sdpa",), head_dim=head_dim, value_head_dim=head_dim)
    predicted = sdpa.sdpa_kernel(find("cpu"), dtype, attention, is_masked=is_masked)
    chosen = chosen_kernel("cpu", getattr(torch, dtype), head_dim=head_dim, is_masked=is_masked)
    assert predicted is not None
    assert predicted.name == chosen


def test_float16_products_of_this_cpu_are_added_up_as_the_table_says() -> None:
    assert float16_sums("cpu") is Float16Sums.FLOAT32
