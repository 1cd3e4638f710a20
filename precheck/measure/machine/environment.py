"""The environment of a scan: Python, libraries and devices."""

from __future__ import annotations

import platform
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import psutil
import torch

from precheck.measure.machine.devices import cpu_name, find_devices
from precheck.records.report import Environment

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "safetensors",
    "tokenizers",
    "huggingface_hub",
    "kernels",
    "flash_attn",
    "flash_attn_3",
    "flash_attn_4",
    "optimum",
    "gptqmodel",
    "auto_gptq",
    "autoawq",
    "bitsandbytes",
    "compressed_tensors",
    "deepspeed",
    "vllm",
    "sglang",
)


def read_environment() -> Environment:
    """Python, system, libraries and devices; nothing that names the user or the machine."""
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=cpu_name(),
        num_threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        libraries={
            name: installed for name in LIBRARIES if (installed := _version(name)) is not None
        },
        # free memory changes from moment to moment, and two reports on one model should be equal
        devices=tuple(replace(device, memory_free_bytes=None) for device in find_devices()),
    )


@cache  # each is looked for in every folder of the path
def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
