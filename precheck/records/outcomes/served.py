"""A served run: what a running engine answered, and which measured configuration it is like."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from precheck.records.configuration import Configuration
from precheck.records.finding import Finding, Severity
from precheck.records.plain import plain as plain_data
from precheck.records.precision import Accumulation, Dtype

SERVED_SCHEMA = "precheck-served/1"


class Told(StrEnum):
    """Of which tokens a server tells how likely they are, least first."""

    NOTHING = "none"
    GENERATED = "generated tokens"
    EVERYWHERE = "prompt and generated tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """The engine, as it describes itself and as it was found to answer."""

    url: str
    model: str
    """The name it was asked for."""
    engine: str | None = None
    """``vllm``, ``llama.cpp``; None where nothing says so."""
    version: str | None = None
    max_context: int | None = None
    """Tokens, as it says itself."""
    api: str = ""
    """Path that was asked: ``/v1/completions``."""
    takes_token_ids: bool = False
    """Else text, which the server tokenizes itself."""
    told: Told = Told.NOTHING
    num_told: int = 0
    """Tokens whose log-probability was asked for at each position."""
    own_words: dict[str, str] = field(default_factory=dict)
    """What else it says of itself, as written: nobody has checked it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One position: which token stands there, and how likely the server says tokens were."""

    token: int
    ids: tuple[int, ...] = ()
    """Token ids that were told, the likeliest first."""
    log_probabilities: tuple[float | None, ...] = ()
    """Of ``ids``, in nats; None where it was null or no number."""

    @property
    def is_told(self) -> bool:
        """Whether every value is a number."""
        return bool(self.ids) and None not in self.log_probabilities


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a server answered to one prompt."""

    name: str
    """Of the probe."""
    prompt: tuple[int, ...]
    """Token ids of the prompt, as the checkpoint's tokenizer makes them."""
    text: str | None
    """What was sent; None: token ids were."""
    generated: tuple[int, ...]
    generated_text: str
    prompt_places: tuple[Place, ...] = ()
    """Of ``prompt`` from its second token on; empty where the server does not tell."""
    generated_places: tuple[Place, ...] = ()
    """Of ``generated``; empty where the server does not tell."""
    num_prompt_tokens: int | None = None
    """As the server counted."""
    server_prompt: tuple[int, ...] | None = None
    """Token ids of the prompt as the server says it read them."""
    is_retokenized: bool = False
    """``generated`` was made of the text, which can stand for other tokens."""
    has_unknown: bool = False
    """A generated token has no id in the checkpoint's tokenizer: ``generated`` ends before it."""

    @property
    def fed(self) -> tuple[int, ...]:
        """Tokens whose successors are compared: all but the last one generated."""
        return self.prompt + self.generated[:-1]

    @property
    def places(self) -> tuple[Place, ...]:
        """Positions that the server tells of, the prompt's first."""
        return self.prompt_places + self.generated_places


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationDistance:
    """How far a server is from one measured configuration; divergences in nats."""

    dtype: Dtype
    attn_implementation: str
    kv_cache_dtype: str | None = None
    quantization: str | None = None
    accumulation: Accumulation = Accumulation.FLOAT32
    prefill: float | None = None
    """KL(server || run), at least, where the prompt alone decides: median over the prompts."""
    decoded: float | None = None
    """The same of later generated tokens, which attend to the server's cache."""
    at_most: float | None = None
    """Upper end of KL(server || run) over all positions: the tail may be anywhere."""
    from_reference: float | None = None
    """KL(run || float32) on the same tokens: what rounding makes."""
    expected: float | None = None
    """The distance up to which a server with other kernels may be this configuration, over all
    positions."""
    top1_agreement: float | None = None
    """Share of positions where the first choices are the same."""
    likeness: float | None = None
    """How alike the server's and the run's differences from float32 are, of 1; None where there are
    none."""
    contradiction: float | None = None
    """By how much the run prefers other tokens than a server that tells no log-probabilities wrote;
    1 is what rounding explains."""
    score: float | None = None
    """Negative log likelihood of the distance, per position: the lowest is the likeliest."""
    fits: bool = False
    failure: str | None = None
    """Why there is nothing to compare with."""

    @property
    def configuration(self) -> Configuration:
        """The configuration."""
        return Configuration.of(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Which measured configurations a server behaves like."""

    like: tuple[int, ...] = ()
    """Indices of ``distances``: the nearest, and those not told apart from it; none fits: empty."""
    nearest: int | None = None
    """Index of the nearest, whether it fits or not; None where nothing could be compared."""
    margin: float | None = None
    """How many times farther the next configuration is that was told apart; None where one that
    rounds less is nearer: see :mod:`precheck.served.likelihood`."""
    by_tokens_alone: bool = False
    """The server told no probabilities: ``like`` are those that its tokens do not contradict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """The first position where the server and its nearest configuration part."""

    probe: str
    position: int
    """Index into prompt and continuation."""
    token_ids: tuple[int, ...]
    """Everything before it."""
    tokens: tuple[str, ...]
    """Of ``ids``, decoded."""
    ids: tuple[int, ...]
    server: tuple[float | None, ...]
    """Log-probabilities of ``ids``, nats; None where it does not tell."""
    run: tuple[float | None, ...]
    reference: tuple[float | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Everything ``precheck verify`` found."""

    schema: str = SERVED_SCHEMA
    precheck_version: str
    model: str
    revision: str | None
    saved_weights: str | None = None
    """Digest of the weights whose saved log-probabilities it was compared with; empty where the
    file has none. None: the weights were run."""
    server: Server
    libraries: dict[str, str]
    """Versions on the machine that compared."""
    num_prompts: int
    num_positions: int
    """Compared, of prompts and generated tokens together."""
    distances: tuple[ConfigurationDistance, ...]
    fingerprint: Fingerprint
    findings: tuple[Finding, ...] = ()
    difference: Difference | None = None
    verdict_of_checkpoint: str | None = None
    """What a scan says of the configuration that the server is like."""
    not_compared: tuple[str, ...] = ()
    """What could not be, and why."""
    answers: tuple[Answer, ...] = ()
    is_of_own_prompts: bool = False
    """The prompts are the user's, and may be private."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return plain_data(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Served:
        """The served run that ``to_dict`` gave.

        Raises:
            msgspec.ValidationError: it is another one's.
        """
        return msgspec.convert(plain, cls)

    @property
    def like(self) -> tuple[Configuration, ...]:
        """The configurations that the server is like, the nearest first."""
        return tuple(self.distances[index].configuration for index in self.fingerprint.like)

    @property
    def has_error(self) -> bool:
        """Whether a finding is an error."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)

    @property
    def sentence(self) -> str:
        """``behaves like bfloat16 + sdpa``."""
        is_all = len(self.like) == len(self.distances) > 1
        names = "every measured configuration" if is_all else " or ".join(map(str, self.like))
        apart = " (not told apart)" if len(self.like) > 1 else ""
        if self.fingerprint.nearest is None:
            return "could not be compared with any configuration"
        if not names:
            return "behaves like none of the measured configurations"
        verb = "is consistent with" if self.fingerprint.by_tokens_alone else "behaves like"
        return f"{verb} {names}{apart}"
