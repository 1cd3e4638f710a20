"""The options of ``precheck verify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    from precheck.records.configuration import Configuration
    from precheck.records.precision import Dtype
    from precheck.records.prompts import Prompt

NUM_GENERATED = 16
"""Tokens after each prompt: enough to read the cache, and a minute on two cores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyRequest:
    """What to ask a server, and what to compare it with."""

    dtypes: tuple[Dtype | Literal["auto"], ...]
    attn_implementations: tuple[str, ...] | None = None
    """None: the model's default, and eager."""
    kv_cache_dtypes: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    measured: tuple[Configuration, ...] = ()
    """Configurations to compare with besides."""
    prompts: Sequence[Prompt] | None = None
    """None: built-in ones."""
    num_generated: int = NUM_GENERATED
    served_model: str | None = None
    """The name that the server knows the model by; None: the first that it lists."""
    concurrency: int = 4
    """Requests at once, where it is seen whether company changes answers."""
    seconds: float = 60.0
    """Time limit of each request."""
    retries: int = 2
    key: str | None = None
    """Sent to the server, and kept nowhere."""
    device: str = "auto"
    max_memory: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
