"""What ``float16_paths.toml`` says of llama.cpp, against its own source: ``make facts``."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

import pytest

from precheck.facts.float16_paths import Float16Path, table
from precheck.records.precision import Dtype

GGML = Path(os.environ.get("PRECHECK_ENGINE_SOURCES", "/nowhere")) / "ggml" / "src"

pytestmark = pytest.mark.skipif(
    not GGML.is_dir(), reason="make facts fetches the source of the engines"
)


def path_of(identity: str) -> Float16Path:
    return next(path for path in table().path if path.id == identity)


def source(name: str) -> str:
    return (GGML / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("llama_cuda_values", "ggml-cuda/fattn-common.cuh"),
        ("llama_vulkan_values", "ggml-vulkan/vulkan-shaders/flash_attn_base.glsl"),
    ],
)
def test_sums_of_values_are_shifted_by_what_the_factor_says(identity: str, name: str) -> None:
    offset = re.search(r"FATTN_KQ_MAX_OFFSET\W+([\d.]+)f\s*\*\s*([\d.]+)f", source(name))
    assert offset is not None
    assert math.exp(-float(offset[1]) * float(offset[2])) == pytest.approx(
        path_of(identity).factor, rel=1e-3
    )


def test_q8_1_stores_a_sum_of_32_in_float16() -> None:
    text = source("ggml-common.h")
    block = re.search(r"#define QK8_1 32\n.*?ggml_half s; // d \* sum\(qs\[i\]\)", text, re.DOTALL)
    assert block is not None
    assert path_of("ggml_q8_1").limit == Dtype.FLOAT16.limits.max


def test_q8_1_is_read_with_its_sum_by_the_types_that_are_named() -> None:
    text = source("ggml-cuda/mmq.cuh")
    cases = re.findall(r"((?:\s*case GGML_TYPE_\w+:)+)\s*return MMQ_Q8_1_DS_LAYOUT_DS4;", text)
    with_sum = set(re.findall(r"GGML_TYPE_(\w+)", "".join(cases)))
    named = set(re.findall(r"Q\d_\w", path_of("ggml_q8_1").where))
    assert named == {"Q4_1", "Q5_1", "Q4_K", "Q5_K"}
    assert named <= with_sum


def test_the_cpu_casts_what_meets_float16_weights() -> None:
    row = re.search(r"\[GGML_TYPE_F16\] = \{(.*?)\}", source("ggml-cpu/ggml-cpu.c"), re.DOTALL)
    assert row is not None
    assert re.search(r"\.vec_dot_type\s+= GGML_TYPE_F16,", row[1])
    assert "F16" in path_of("llama_cpu_inputs").where
