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
    """Computes float32 products on CUDA in float32 instead of TF32; restores the settings."""
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
    """Runs compiled modules (``torch.compile``) as plain Python.

    A compiled block dispatches no operations, and the compiler would compile the hooks too. If
    nothing was compiled yet, nothing is done, since importing the compiler takes two seconds.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
