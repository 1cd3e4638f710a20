"""A cache in fp8 with the scales that a checkpoint stores."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import precheck
from precheck.checkpoint.faults.scales import cache_scales
from precheck.records.finding import Verdict
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

NAME = "fp8_e4m3_checkpoint"
FORMATS = ("fp8_e4m3", NAME, "fp8_e4m3_calibrated")


def checkpoint(folder: Path, *, scale: float | None) -> Path:
    save_checkpoint(tiny("llama"), folder, tokenizer=True)
    if scale is not None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        for layer in range(3):
            for part in "kv":
                name = f"model.layers.{layer}.self_attn.{part}_scale"
                tensors[name] = torch.tensor(scale)
        save_file(tensors, path, metadata={"format": "pt"})
    return folder


def kl_divergences(folder: Path) -> dict[str | None, float | None]:
    report = precheck.scan(
        folder,
        dtypes=["float16"],
        attn_implementations=["sdpa"],
        kv_cache_dtypes=FORMATS,
        quick=True,
    )
    return {
        run.kv_cache_dtype: run.logits.kl_divergence_mean if run.logits else None
        for run in report.runs
        if run.kv_cache_dtype is not None
    }


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_scale_that_is_a_power_of_two_changes_little_in_range(
    scale: float, tmp_path: Path
) -> None:
    found = kl_divergences(checkpoint(tmp_path, scale=scale))
    # a smaller scale has finer subnormal numbers
    assert found[NAME] == pytest.approx(found["fp8_e4m3"], rel=1e-6 if scale == 1.0 else 0.05)


def test_a_scale_that_is_too_small_clips(tmp_path: Path) -> None:
    found = kl_divergences(checkpoint(tmp_path, scale=2.0**-10))
    clipped, unit = found[NAME], found["fp8_e4m3"]
    assert clipped is not None
    assert unit is not None
    assert clipped > 10 * unit, "448 / 1,024 is far below the keys"


def test_without_stored_scales_the_run_fails_and_says_why(tmp_path: Path) -> None:
    report = precheck.scan(
        checkpoint(tmp_path, scale=None),
        dtypes=["float16"],
        attn_implementations=["sdpa"],
        kv_cache_dtypes=[NAME],
        quick=True,
    )
    (run,) = (run for run in report.runs if run.kv_cache_dtype is not None)
    assert run.verdict is Verdict.FAILED
    assert run.failure == "the checkpoint stores no scales of keys and values"


def test_scales_are_found_by_the_names_that_engines_know() -> None:
    stored = {
        "model.layers.0.self_attn.k_scale": torch.tensor([0.5]),
        "model.layers.0.self_attn.v_scale": torch.tensor(0.25),
        "model.layers.1.self_attn.k_proj.k_scale": torch.tensor([0.1, 0.3]),
        "model.layers.2.self_attn.kv_scale": torch.tensor(2.0),
        "model.layers.3.self_attn.k_proj.output_scale": torch.tensor(4.0),
        "model.layers.3.self_attn.q_scale": torch.tensor(8.0),
        "model.layers.3.mlp.up_proj.weight_scale": torch.tensor(16.0),
    }
    assert cache_scales(stored) == {
        "0.keys": 0.5,
        "0.values": 0.25,
        "1.keys": pytest.approx(0.3),
        "2.keys": 2.0,
        "2.values": 2.0,
        "3.keys": 4.0,
    }
