"""What a file of saved log-probabilities says of itself: which checkpoint, probes and runs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from precheck.records.configuration import Configuration
from precheck.records.precision import Accumulation, Dtype

LOGITS_SCHEMA = "precheck-logits/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedProbe:
    """A prompt, and how float32 goes on after it."""

    name: str
    ids: tuple[int, ...]
    """Token ids of the prompt, as the checkpoint's tokenizer makes them."""
    text: str | None = None
    """What they were made of; None where no text makes them."""
    is_chat: bool = False
    """``text`` is what a user says; ``ids`` are those of the chat template."""
    generated: tuple[int, ...]
    """The greedy continuation in float32."""

    @property
    def num_positions(self) -> int:
        """Tokens that are predicted: all but the first."""
        return len(self.ids) - 1 + len(self.generated)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRun:
    """A configuration that was run."""

    dtype: Dtype
    attn_implementation: str
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    accumulation: Accumulation = Accumulation.FLOAT32
    verdict: str | None = None
    """What the scan says of it, in words."""
    failure: str | None = None
    """Why it could not be run; nothing is saved of it then."""

    @property
    def configuration(self) -> Configuration:
        """The configuration."""
        return Configuration.of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedContents:
    """Everything but the numbers."""

    schema: str = LOGITS_SCHEMA
    precheck_version: str
    model: str
    revision: str | None
    config: str | None
    """SHA-256 of the checkpoint's config.json; None of a GGUF file, which has none."""
    weights: str | None
    """Digest of the weights, as ``checkpoint.digest`` of the report; None if the scan has none."""
    vocab_size: int
    max_context: int | None
    libraries: dict[str, str]
    probes: tuple[SavedProbe, ...]
    probes_digest: str
    """SHA-256 of the token ids of all probes."""
    is_of_own_prompts: bool = False
    """The prompts are the user's, and may be private."""
    runs: tuple[SavedRun, ...]

    @property
    def own_prompts(self) -> tuple[str, ...]:
        """The user's texts, which may be private."""
        texts = (probe.text for probe in self.probes if self.is_of_own_prompts)
        return tuple(text for text in texts if text is not None)

    @property
    def num_positions(self) -> int:
        """Of all probes, one after the other."""
        return sum(probe.num_positions for probe in self.probes)

    @property
    def finished(self) -> tuple[SavedRun, ...]:
        """The runs that numbers are saved of, in the order of the numbers."""
        return tuple(run for run in self.runs if run.failure is None)


def digest_of(probes: tuple[SavedProbe, ...]) -> str:
    """SHA-256 of the token ids of all probes, prompts and continuations."""
    ids = [(probe.ids, probe.generated) for probe in probes]
    return hashlib.sha256(msgspec.json.encode(ids)).hexdigest()
