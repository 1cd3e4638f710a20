"""Saving what every run of a scan says, so that servers can be compared without the weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from precheck.checkpoint.config import config_digest
from precheck.errors import UnsupportedModelError
from precheck.measure.lockstep.witness import Witness
from precheck.measure.request import Request
from precheck.measure.subject.subject import CheckpointSubject
from precheck.pipeline import judged
from precheck.records.outcomes.saved_logits import (
    SavedContents,
    SavedProbe,
    SavedRun,
    digest_of,
)
from precheck.records.outcomes.served import Answer, Place
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.records.traces import GREEDY
from precheck.served.runs.file import SavedLogits
from precheck.served.runs.weights import CheckpointRuns, verdicts_of
from precheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.probes.batch import Batch
    from precheck.records.progress import Observer
    from precheck.records.report import Report
    from precheck.served.questions import Question
    from precheck.served.request import VerifyRequest

NUM_SAVED = 64
"""Likeliest tokens of each run at each position: three times what servers tell."""


@dataclass(slots=True, eq=False)
class _Texts(Witness):
    """What the runs write, by the token ids of the prompt."""

    written: dict[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)

    def record_text(
        self, skeleton: Skeleton, batch: Batch, *, strategy: str, tokens: Sequence[int]
    ) -> None:
        """Keeps what float32 writes greedily."""
        if strategy == GREEDY and skeleton.configuration.is_reference:
            self.written[tuple(batch.input_ids[0].tolist())] = tuple(tokens)


def saved_logits(
    checkpoint: Checkpoint, report: Report, *, request: VerifyRequest, observe: Observer
) -> SavedLogits:
    """What every configuration of a scan says of the prompts, and of what follows them in float32.

    Args:
        checkpoint: what was scanned.
        report: of the scan, whose configurations run once more.
        request: prompts, and where to run.
        observe: receives progress.

    Raises:
        UsageError: a prompt that cannot be sent to a server.
        PrecheckError: the checkpoint cannot be run, or does not continue a text.
    """
    attention = dict.fromkeys(run.requested_attn_implementation for run in report.runs)
    request = replace(request, attn_implementations=tuple(attention), measured=report.deployable)
    runs = CheckpointRuns.of(checkpoint, request, observe=observe, num_top=NUM_SAVED)
    questions = runs.questions()
    written = _written(runs, questions, report)
    answers = [_answer(question, written[question.ids]) for question in questions]
    said = runs.say(answers)
    probes = tuple(
        SavedProbe(
            name=question.name,
            ids=question.ids,
            text=question.text,
            is_chat=question.is_chat,
            generated=written[question.ids],
        )
        for question in questions
    )
    verdicts = {**said.verdicts, **verdicts_of(report)}
    contents = SavedContents(
        precheck_version=__version__,
        model=checkpoint.id,
        revision=checkpoint.revision,
        config=config_digest(checkpoint.folder),
        weights=report.checkpoint.digest,
        vocab_size=runs.tokens.vocabulary.size,
        max_context=runs.max_context,
        libraries=said.libraries,
        probes=probes,
        probes_digest=digest_of(probes),
        is_of_own_prompts=request.prompts is not None,
        runs=tuple(
            SavedRun(
                **configuration.as_fields(SavedRun),
                verdict=verdicts.get(configuration),
                failure=said.failures.get(configuration),
            )
            for configuration in {**said.readings, **said.failures}
        ),
    )
    return SavedLogits(contents=contents, readings=said.readings)


def _written(
    runs: CheckpointRuns, questions: Sequence[Question], report: Report
) -> dict[tuple[int, ...], tuple[int, ...]]:
    """What float32 writes after each prompt, by the prompt's token ids.

    Raises:
        UnsupportedModelError: it writes nothing.
    """
    request, texts = runs.request, _Texts()
    what = f"writing {counted(request.num_generated, 'token')} after each prompt in float32"
    runs.observe(Announcement(text=what))
    judged(
        CheckpointSubject(runs.checkpoint),
        Request(
            dtypes=(Dtype.FLOAT32,),
            attn_implementations=(report.runs[0].requested_attn_implementation,),
            prompts=[list(question.ids) for question in questions],
            num_generated=request.num_generated,
            strategies=(GREEDY,),
            device=request.device,
            max_memory=request.max_memory,
            trust_remote_code=request.trust_remote_code,
            witness=texts,
        ),
        observe=runs.observe,
    )
    if not all(texts.written.get(question.ids) for question in questions):
        raise UnsupportedModelError(
            f"{report.model.architecture} writes nothing after a prompt in float32",
            hint="omit --save-logits",
        )
    return texts.written


def _answer(question: Question, written: tuple[int, ...]) -> Answer:
    """A prompt and its continuation as a server would answer that tells nothing."""
    return Answer(
        name=question.name,
        prompt=question.ids,
        text=question.text,
        generated=written,
        generated_text="",
        prompt_places=tuple(Place(token=token) for token in question.ids[1:]),
    )
