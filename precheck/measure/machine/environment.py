"""The machine a scan runs on, and the torch settings it needs while it runs."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import psutil
import torch

from precheck.errors import UsageError
from precheck.measure.machine.devices import cpu_name, find_devices
from precheck.records.report import Environment

if TYPE_CHECKING:
    from collections.abc import Iterator

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
        libraries={name: found for name in LIBRARIES if (found := _version(name)) is not None},
        # what is free changes from moment to moment, and two reports on one model should be equal
        devices=tuple(replace(each, memory_free_bytes=None) for each in find_devices()),
    )


def resolve_device(name: str) -> str:
    """The torch device to use: ``auto`` takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: it is not here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            own = os.environ.get("LOCAL_RANK")  # one of several processes, each with its own GPU
            return "cuda" if own is None else f"cuda:{own}"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"unknown device: {name!r} (expected auto, cpu, cuda, cuda:0 or mps)"
        ) from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if (device.index or 0) >= present.get(device.type, 0):
        here = [kind for kind, count in present.items() if count]
        raise UsageError(
            f"device not present: {name!r}", hint=f"use one of: {', '.join(['auto', *here])}"
        )
    return name


@contextmanager
def exact_float32() -> Iterator[None]:
    """Makes float32 products on CUDA real float32 (no TF32), and restores the settings."""
    before = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def uncompiled() -> Iterator[None]:
    """Runs what ``torch.compile`` has compiled as it is written.

    A compiled block shows no operations, and the compiler would compile the hooks too. Where
    nothing was compiled so far there is nothing to do: importing the compiler takes two seconds.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
