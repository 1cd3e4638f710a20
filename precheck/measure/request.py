"""What a scan is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from precheck.measure.machine.devices import resolve_device
from precheck.measure.models.configurations import check_attention_name
from precheck.records.traces import GREEDY, SAMPLED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.probes.batch import Batch
    from precheck.records.configuration import Configuration
    from precheck.records.precision import Accumulation, Dtype
    from precheck.records.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments of ``precheck.scan`` that decide what is measured."""

    dtypes: tuple[Dtype, ...]
    with_own_dtype: bool = False
    """Run the checkpoint's own dtype besides ``dtypes``."""
    attn_implementations: tuple[str, ...] | None = None
    """None takes the model's default, and eager where that differs."""
    required: tuple[Configuration, ...] = ()
    """Configurations to measure too; without any, the one that the config deploys."""
    prompts: Sequence[Prompt] | None = None
    """None takes the built-in probes."""
    batches: tuple[Batch, ...] = ()
    """Inputs that are made already, to run besides the others."""
    builtin_probes: bool = False
    """Keep the built-in probes besides ``prompts``."""
    quick: bool = False
    context: int | Literal["max"] | None = None
    """Tokens of one long text to run besides; ``max`` is the model's own context."""
    device: str = "auto"
    max_memory: int | None = None
    """Bytes that the scan may take on its device; None takes what is free."""
    is_resident: bool = False
    """Keep all weights in memory."""
    is_static: bool = False
    """Run nothing."""
    is_full: bool = False
    """Read all weights even so."""
    is_streamed: bool = False
    """Read the weights of a repository on the Hub, and store nothing."""
    proves: bool = False
    """Bound what the 16-bit runs compute, over all inputs."""
    proof_minutes: float = 0.0
    """For better bounds where one does not fit."""
    num_generated: int = 0
    """Tokens to generate after each prompt."""
    strategies: tuple[str, ...] = (GREEDY, SAMPLED)
    """How they are chosen, once each."""
    continues_own: bool = True
    """Generate after each of ``prompts`` if there are some, instead of after a built-in one."""
    accumulations: tuple[Accumulation, ...] | None = None
    """The dtypes that matrix products accumulate in; None decides by the checkpoint."""
    kv_cache_dtypes: tuple[str, ...] = ()
    """Formats of the key-value cache, one more run each."""
    quantizations: tuple[str, ...] = ()
    """Formats of the weights, one more run each."""
    format_limit: float | None = None
    """KL divergence, nats: of formats that lose more, the parts that lose it are searched for."""
    capsule: Path | None = None
    """Folder to write the layer that overflows to."""
    witness: Witness | None = None
    """Is shown what the report does not keep."""

    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """What changes a scan's results besides dtypes, attention and device, as flags."""
        flags = {
            "--static": self.is_static,
            "--full": self.is_full,
            "--stream": self.is_streamed,
            "--quick": self.quick,
            "--prove": self.proves,
            "--builtin-probes": self.builtin_probes,
            "--trust-remote-code": self.trust_remote_code,
            "--allow-pickle": self.allow_pickle,
        }
        values = {
            "--context": str(self.context or ""),
            "--prove-minutes": f"{self.proof_minutes:g}" if self.proof_minutes else "",
            "--generate": str(self.num_generated or ""),
            "--accumulation": ",".join(self.accumulations or ()),
            "--kv-cache-dtype": ",".join(self.kv_cache_dtypes),
            "--quantization": ",".join(self.quantizations),
        }
        required = (str(each).replace(" ", "") for each in self.required if each.has_format)
        return (
            *(flag for flag, is_set in flags.items() if is_set),
            *(word for flag, value in values.items() if value for word in (flag, value)),
            *(word for value in required for word in ("--require", value)),
        )

    @property
    def runs_builtin_probes(self) -> bool:
        """Whether the built-in probes are run, alone or besides ``prompts``."""
        return self.prompts is None or self.builtin_probes


def check_request(request: Request) -> None:
    """Refuses what no checkpoint could run with, before one is downloaded.

    Raises:
        UsageError: an unknown attention implementation, or a device that this machine lacks.
    """
    required = (configuration.attn_implementation for configuration in request.required)
    for name in (*(request.attn_implementations or ()), *filter(None, required)):
        check_attention_name(name, trust_remote_code=request.trust_remote_code)
    resolve_device(request.device)
