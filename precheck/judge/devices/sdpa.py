"""Which kernel torch's ``scaled_dot_product_attention`` chooses on a device, and why.

The rules are torch's own, those of a forward without gradients and dropout over dense tensors, as
transformers calls it: without a mask where no token is padding, else with one.

**Source**: ``sdp_utils.cpp`` of torch at 001f694 (CUDA and ROCm), ``sdp_utils_cpp.cpp`` (CPU), and
``use_gqa_in_sdpa`` of transformers 5.23. The CPU's rule is checked against torch in the tests, the
others where such a device is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from precheck.facts.attention import implementation
from precheck.records.precision import Dtype
from precheck.records.sizes import AttentionFacts

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware

MAX_FLASH_HEAD_DIM = 256
MAX_CUDNN_HEAD_DIM = 128
MAX_AOTRITON_HEAD_DIM = 512
MAX_AOTRITON_HEAD_DIM_GFX11 = 256
NEWEST = (12, 1)
"""The newest capability that torch's fused kernels accept."""

_TOO_NEW = f"torch's fused kernels support at most sm_{NEWEST[0]}{NEWEST[1]}"


class Kernel(NamedTuple):
    """What torch runs, and why it skips the kernels before it."""

    name: str
    why: str

    @property
    def is_math(self) -> bool:
        """Whether it materialises the N x N attention matrix."""
        return self.name == "math"


def sdpa_kernel(
    device: Hardware, dtype: Dtype, attention: AttentionFacts, *, is_masked: bool
) -> Kernel | None:
    """The kernel on this device; None where no rule is known.

    >>> from precheck.facts.devices import find
    >>> from precheck.records.sizes import AttentionFacts
    >>> qwen = AttentionFacts(supported=("sdpa",), head_dim=128)
    >>> sdpa_kernel(find("T4"), Dtype.BFLOAT16, qwen, is_masked=False).name
    'math'
    """
    match device.kind:
        case "cuda":
            return _cuda(device, dtype, attention, is_masked=is_masked)
        case "rocm":
            return _rocm(device, dtype, attention, is_masked=is_masked)
        case "cpu":
            return _cpu(attention)
        case _:
            return None


MATH_KERNEL = "the math kernel, which materialises an N x N matrix for every head"


def falls_to_math(device: Hardware, dtype: Dtype, attention: AttentionFacts | None) -> bool:
    """Whether no fused kernel takes the dtype there; without facts, that of ordinary heads."""
    facts = attention or AttentionFacts(supported=())
    kernel = sdpa_kernel(device, dtype, facts, is_masked=False)
    return kernel is not None and kernel.is_math


def _cuda(
    device: Hardware, dtype: Dtype, attention: AttentionFacts, *, is_masked: bool
) -> Kernel | None:
    capability = device.capability
    if capability is None:
        return None
    why_not_flash = _why_not_flash(capability, dtype, attention, is_masked=is_masked)
    if _prefers_cudnn(capability) and _cudnn_takes(dtype, attention):
        return Kernel("cudnn", "preferred on Hopper and Blackwell with cuDNN newer than 9.15")
    if why_not_flash is None:
        return Kernel("flash", "no mask, 16-bit dtype, head size at most 256")
    why_not_efficient = _why_not_efficient(capability, dtype, attention)
    if why_not_efficient is None:
        return Kernel("memory-efficient", why_not_flash)
    return Kernel("math", "; ".join(dict.fromkeys((why_not_flash, why_not_efficient))))


def _why_not_flash(
    capability: tuple[int, int], dtype: Dtype, attention: AttentionFacts, *, is_masked: bool
) -> str | None:
    if capability > NEWEST:
        return _TOO_NEW
    if not dtype.is_half:
        return "flash supports only 16-bit dtypes"
    if capability < (8, 0):
        return "flash needs sm_80 or newer"
    if (attention.head_dim or 0) > MAX_FLASH_HEAD_DIM:
        return f"head size {attention.head_dim}, flash supports at most {MAX_FLASH_HEAD_DIM}"
    if _has_odd_value_heads(attention):
        return "value heads and key heads have different sizes"
    return "flash does not support masks" if is_masked else None


def _why_not_efficient(
    capability: tuple[int, int], dtype: Dtype, attention: AttentionFacts
) -> str | None:
    if capability > NEWEST:
        return _TOO_NEW
    if dtype is Dtype.BFLOAT16 and capability < (8, 0):
        return "memory-efficient does not support bfloat16 below sm_80"
    alignment = _alignment(capability, dtype)
    for head_dim in (attention.head_dim, attention.value_head_dim):
        if head_dim is not None and head_dim % alignment:
            return f"head size {head_dim}, memory-efficient needs a multiple of {alignment}"
    return None


def _alignment(capability: tuple[int, int], dtype: Dtype) -> int:
    """``minimum_gemm_alignment`` of torch: 128 bits where tensor cores are used."""
    is_half = dtype.is_half
    uses_tensor_cores = capability >= (8, 0) or (capability >= (7, 0) and is_half)
    least = 4 if capability >= (8, 0) else 1
    return max(least, 8 if is_half else 4) if uses_tensor_cores else least


def _prefers_cudnn(capability: tuple[int, int]) -> bool:
    return capability[0] in {9, 10}


def _cudnn_takes(dtype: Dtype, attention: AttentionFacts) -> bool:
    sizes = (attention.head_dim or 0, attention.value_head_dim or attention.head_dim or 0)
    return dtype.is_half and all(size <= MAX_CUDNN_HEAD_DIM and size % 8 == 0 for size in sizes)


def _has_odd_value_heads(attention: AttentionFacts) -> bool:
    return attention.value_head_dim not in {None, attention.head_dim}


def _rocm(
    device: Hardware, dtype: Dtype, attention: AttentionFacts, *, is_masked: bool
) -> Kernel | None:
    row = implementation("sdpa")
    architecture = device.compute_capability or ""
    if row is None or architecture not in (*row.architectures, *row.experimental):
        return Kernel("math", f"AOTriton has no kernels for {architecture or device.name}")
    if architecture in row.experimental:
        return Kernel(
            "math",
            f"AOTriton's kernels for {architecture} are experimental: "
            "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1 switches them on",
        )
    limit = (
        MAX_AOTRITON_HEAD_DIM_GFX11 if architecture.startswith("gfx11") else MAX_AOTRITON_HEAD_DIM
    )
    if (attention.head_dim or 0) > limit:
        return Kernel("math", f"head size {attention.head_dim}, AOTriton supports at most {limit}")
    if dtype.is_half and not is_masked and not _has_odd_value_heads(attention):
        return Kernel("flash", "no mask, 16-bit dtype")
    return Kernel("memory-efficient", "flash supports only 16-bit dtypes without a mask")


def _cpu(attention: AttentionFacts) -> Kernel:
    if _has_odd_value_heads(attention):
        return Kernel("math", "value heads and key heads have different sizes")
    return Kernel("flash", "the CPU's own kernel")
