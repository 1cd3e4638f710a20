"""What a scan is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.measure.lockstep.witness import Witness
    from precheck.records.configuration import Configuration
    from precheck.records.precision import Accumulation, Dtype
    from precheck.records.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of ``precheck.scan`` that the probe works by."""

    dtypes: tuple[Dtype, ...]
    attn_implementations: tuple[str, ...] | None
    required: tuple[Configuration, ...]
    prompts: Sequence[Prompt] | None
    builtin_probes: bool
    quick: bool
    device: str
    max_memory: int | None
    is_resident: bool
    num_generated: int = 0
    """Tokens to write behind each prompt."""
    continues_own: bool = True
    """Write behind each of ``prompts``, where there are some; else behind a built-in one."""
    accumulations: tuple[Accumulation, ...] | None = None
    """What kernels add up in; None decides by the checkpoint."""
    capsule: Path | None = None
    """Where the layer that overflows is written to."""
    witness: Witness | None = None
    """Is shown what the report does not keep."""
