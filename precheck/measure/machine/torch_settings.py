"""Settings of torch that a scan needs while it runs."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


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
