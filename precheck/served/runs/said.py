"""What the comparison asks of a checkpoint's runs, whether they run now or were saved before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Answer
    from precheck.served.questions import Question, Tokens
    from precheck.served.readings import Reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What every run says of a server's answers."""

    answers: tuple[Answer, ...]
    """Those that are compared, up to the last position that can be."""
    readings: Mapping[Configuration, Mapping[str, Reading]]
    """Of every run, by the name of the answer."""
    failures: Mapping[Configuration, str] = field(default_factory=dict)
    """Configurations that could not be run, and why."""
    verdicts: Mapping[Configuration, str] = field(default_factory=dict)
    """What a scan says of each configuration, in words."""
    libraries: dict[str, str] = field(default_factory=dict)
    """Versions on the machine that ran them."""
    not_compared: Mapping[str, str] = field(default_factory=dict)
    """Why an answer, or its end, is not compared, by the name of the answer."""


class Runs(Protocol):
    """The runs of one checkpoint."""

    @property
    def id(self) -> str:
        """The checkpoint, as the user named it."""

    @property
    def revision(self) -> str | None:
        """Commit on the Hub; None for a local folder."""

    @property
    def tokens(self) -> Tokens:
        """Its tokenizer."""

    @property
    def max_context(self) -> int | None:
        """The longest input that the model allows; None where its config does not say."""

    @property
    def is_of_own_prompts(self) -> bool:
        """Whether the prompts are the user's, and may be private."""

    @property
    def saved_weights(self) -> str | None:
        """Digest of the weights that ran before, empty if unknown; None: they run now."""

    def questions(self) -> tuple[Question, ...]:
        """The prompts that they can be asked.

        Raises:
            UsageError: a prompt that cannot be sent.
        """

    def say(self, answers: Sequence[Answer]) -> Said:
        """What they say of these answers.

        Raises:
            PrecheckError: the checkpoint cannot be run.
        """
