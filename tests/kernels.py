"""What torch chooses, asked of torch itself."""

from __future__ import annotations

import torch

_BACKENDS = {
    0: "math",
    1: "flash",
    2: "memory-efficient",
    3: "cudnn",
    4: "overrideable",
}
"""``torch.nn.attention.SDPBackend`` by number, in the words of ``judge/devices/sdpa.py``."""


def chosen_kernel(
    device: str, dtype: torch.dtype, *, head_dim: int, is_masked: bool, num_tokens: int = 128
) -> str:
    """The kernel that torch's ``scaled_dot_product_attention`` chooses there, by its own rules.

    Called as transformers calls it: causal without a mask, or with one.
    """
    shape = (1, 4, num_tokens, head_dim)
    query, key, value = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(3))
    mask = None
    if is_masked:
        mask = torch.ones(1, 1, num_tokens, num_tokens, dtype=torch.bool, device=device)
    with torch.no_grad():
        number = torch._fused_sdp_choice(  # noqa: SLF001  the only way to ask
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
    return _BACKENDS.get(int(number), str(number))
