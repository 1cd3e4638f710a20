"""A checkpoint's weights, run in every configuration on what a server read and wrote."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from precheck.errors import UsageError
from precheck.measure.request import Request, check_request
from precheck.measure.subject.subject import CheckpointSubject
from precheck.pipeline import judged
from precheck.records.finding import VERBS
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.served.questions import questions, read_tokens
from precheck.served.readings import NUM_TOP, ReadingWitness, sequences
from precheck.served.runs.said import Said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from precheck.checkpoint.source import Checkpoint
    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.served import Answer
    from precheck.records.progress import Observer
    from precheck.records.report import Report
    from precheck.served.questions import Question, Tokens
    from precheck.served.request import VerifyRequest


@dataclass(frozen=True, kw_only=True)
class CheckpointRuns:
    """Runs of a checkpoint that is at hand."""

    checkpoint: Checkpoint
    tokens: Tokens
    max_context: int | None
    request: VerifyRequest
    """Configurations and prompts."""
    observe: Observer
    saved_weights: ClassVar[None] = None
    num_top: int = NUM_TOP
    """Likeliest tokens of each run that are kept at each position."""

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, request: VerifyRequest, *, observe: Observer, **options: int
    ) -> Self:
        """Those of a checkpoint.

        Raises:
            UnsupportedModelError: the model does not generate text from token ids.
        """
        tokens, max_context = read_tokens(checkpoint)
        return cls(
            checkpoint=checkpoint,
            tokens=tokens,
            max_context=max_context,
            request=request,
            observe=observe,
            **options,
        )

    @property
    def id(self) -> str:
        """The checkpoint, as the user named it."""
        return self.checkpoint.id

    @property
    def revision(self) -> str | None:
        """Commit on the Hub; None for a local folder."""
        return self.checkpoint.revision

    @property
    def is_of_own_prompts(self) -> bool:
        """Whether the prompts are the user's."""
        return self.request.prompts is not None

    def questions(self) -> tuple[Question, ...]:
        """The user's prompts, or built-in ones; errors as of :class:`Runs`."""
        num_tokens = self.request.num_generated
        most = None if self.max_context is None else self.max_context - num_tokens
        found = questions(self.tokens, self.request.prompts, most_tokens=most)
        if not found:
            raise UsageError(f"no prompt leaves room for {num_tokens} tokens", hint="--generate 4")
        return found

    def say(self, answers: Sequence[Answer]) -> Said:
        """What every configuration says of these answers; errors as of :class:`Runs`."""
        compared = tuple(one for one in answers if one.generated and self._is_known(one))
        if not compared:
            return Said(answers=(), readings={})
        witness = ReadingWitness({one.name: one for one in compared}, num_top=self.num_top)
        measured = self._measured(compared, witness)
        return Said(
            answers=compared,
            readings=witness.readings,
            failures={
                run.configuration: run.failure for run in measured.runs if run.failure is not None
            },
            verdicts=verdicts_of(measured),
            libraries=measured.environment.libraries,
        )

    def _is_known(self, answer: Answer) -> bool:
        return self.tokens.vocabulary.has_all(answer.fed)

    def _measured(self, compared: tuple[Answer, ...], witness: ReadingWitness) -> Report:
        """The report on the runs, which the witness reads."""
        request = self.request
        scan = Request(
            dtypes=tuple(Dtype(name) for name in request.dtypes if name != "auto"),
            with_own_dtype="auto" in request.dtypes,
            attn_implementations=request.attn_implementations,
            required=request.measured,
            prompts=(),
            batches=sequences(compared),
            device=request.device,
            max_memory=request.max_memory,
            kv_cache_dtypes=request.kv_cache_dtypes,
            quantizations=request.quantizations,
            trust_remote_code=request.trust_remote_code,
        )
        check_request(scan)
        what = counted(len(compared), "answer")
        self.observe(Announcement(text=f"comparing {what} in every configuration"))
        return judged(
            CheckpointSubject(self.checkpoint),
            replace(scan, witness=witness),
            observe=self.observe,
        )


def verdicts_of(report: Report) -> dict[Configuration, str]:
    """What a scan says of each configuration, in words."""
    return {
        configuration: f"{run.name} {VERBS[run.verdict]}"
        for run in report.runs
        for configuration in run.configurations
    }
