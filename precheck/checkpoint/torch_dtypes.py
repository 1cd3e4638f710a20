"""torch's dtypes by name, and their names: records and headers hold names alone."""

from __future__ import annotations

import torch


def torch_dtype(name: str) -> torch.dtype:
    """The dtype with a torch name.

    >>> torch_dtype("bfloat16")
    torch.bfloat16
    """
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def dtype_name(dtype: torch.dtype | str) -> str:
    """The torch name of a dtype, also of one that a config spells as text.

    >>> dtype_name(torch.float16), dtype_name("torch.float16")
    ('float16', 'float16')
    """
    return str(dtype).removeprefix("torch.")
