"""How this machine multiplies 16-bit numbers."""

from __future__ import annotations

from typing import Any

import torch

from precheck.records.precision import Arithmetic, Dtype

_NEEDS_ONE_OF = {
    Dtype.FLOAT16: ("avx512_fp16", "amx_fp16", "avx10_1", "avx10_2", "fp16_arith"),
    Dtype.BFLOAT16: ("avx512_bf16", "amx_bf16", "avx10_2", "bf16", "sve_bf16"),
}
"""Instruction sets that multiply a dtype, as torch names them.

**Source**: https://docs.pytorch.org/docs/stable/cpu.html (``torch.cpu.get_capabilities``);
Intel's manual has FP16 in AVX10.1, BF16 dot products in AVX512_BF16.
"""


def arithmetic_of(dtype: Dtype, device: str) -> Arithmetic:
    """How products of a dtype are computed on a device.

    The instruction sets of the processor decide, never a timing: two scans on one machine must
    give the same numbers. A processor that reports no instruction sets is assumed to have them all.
    """
    if device != "cpu" or dtype not in _NEEDS_ONE_OF:
        return Arithmetic.NATIVE
    capabilities = cpu_capabilities()
    is_native = any(capabilities.get(name, False) for name in _NEEDS_ONE_OF[dtype])
    return Arithmetic.NATIVE if is_native or not capabilities else Arithmetic.FLOAT32_ROUNDED


def cpu_capabilities() -> dict[str, Any]:
    """Instruction sets of the processor by name; empty if this torch does not report them."""
    read = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.11
    return {} if read is None else dict(read())
