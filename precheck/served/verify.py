"""The whole comparison: ask the server, run the same tokens in every configuration, and judge."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.checkpoint.source import open_checkpoint
from precheck.errors import UsageError
from precheck.measure.request import Request, check_request
from precheck.measure.subject.subject import CheckpointSubject
from precheck.pipeline import judged
from precheck.records.finding import VERBS
from precheck.records.outcomes.served import Fingerprint, Served
from precheck.records.precision import Dtype
from precheck.records.progress import Announcement
from precheck.records.quantities import counted
from precheck.served.asking import ask
from precheck.served.engine import ask_engine
from precheck.served.evidence import Evidence
from precheck.served.findings.rules import find
from precheck.served.fingerprint import (
    fingerprint,
    fingerprint_of_tokens,
    with_contradictions,
)
from precheck.served.first_difference import first_difference
from precheck.served.http_client import HttpClient
from precheck.served.likelihood import distances, num_prefill
from precheck.served.questions import questions, read_tokens
from precheck.served.readings import ReadingWitness, compared_places, sequences
from precheck.version import __version__

if TYPE_CHECKING:
    from precheck.checkpoint.source import Checkpoint
    from precheck.records.outcomes.served import Answer, ConfigurationDistance
    from precheck.records.progress import Observer
    from precheck.records.report import Report
    from precheck.served.asking import Asked
    from precheck.served.questions import Tokens
    from precheck.served.request import VerifyRequest


def verify(
    url: str,
    model: str,
    *,
    request: VerifyRequest,
    report: Report | None = None,
    observe: Observer,
) -> Served:
    """Which measured configuration of a checkpoint a running engine behaves like.

    Args:
        url: of the server.
        model: local folder, Hub id, or ``demo:NAME``.
        request: what to ask, and what to compare with.
        report: of a scan of the checkpoint, whose verdict stands beside.
        observe: receives progress.

    Raises:
        UsageError: an address, a prompt or a name that cannot be used.
        ServerError: the server does not answer as its API promises.
        PrecheckError: the checkpoint cannot be run.
    """
    with HttpClient(
        url, key=request.key, seconds=request.seconds, retries=request.retries
    ) as client:
        engine = ask_engine(client, model=model, served_model=request.served_model)
        checkpoint = open_checkpoint(
            model,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            observe=observe,
        )
        tokens, max_context = read_tokens(checkpoint)
        most = None if max_context is None else max_context - request.num_generated
        asked_for = questions(tokens, request.prompts, most_tokens=most)
        if not asked_for:
            raise UsageError(
                f"no prompt leaves room for {request.num_generated} tokens", hint="--generate 4"
            )
        asked = ask(client, engine, tokens, asked_for, request=request, observe=observe)
    return compare_with_checkpoint(
        checkpoint, asked, tokens, max_context, request=request, report=report, observe=observe
    )


def compare_with_checkpoint(
    checkpoint: Checkpoint,
    asked: Asked,
    tokens: Tokens,
    max_context: int | None,
    *,
    request: VerifyRequest,
    report: Report | None,
    observe: Observer,
) -> Served:
    """Runs what the server read and wrote in every configuration, and judges the differences.

    Args:
        checkpoint: what is served.
        asked: the server's answers.
        tokens: the checkpoint's tokenizer.
        max_context: of the checkpoint, in tokens.
        request: configurations to compare with.
        report: of a scan, for its verdict.
        observe: receives progress.

    Raises:
        PrecheckError: the checkpoint cannot be run.
    """
    compared = tuple(one for one in asked.answers if one.generated and _is_known(one, tokens))
    witness = ReadingWitness({answer.name: answer for answer in compared})
    measured = _measured(checkpoint, compared, witness, request=request, observe=observe)
    failures = (
        {run.configuration: run.failure for run in measured.runs if run.failure is not None}
        if measured is not None
        else {}
    )
    told = [answer for answer in compared if answer.places]
    rows = distances(told or compared, witness.readings, failures)
    if not told:
        rows = with_contradictions(rows, compared, witness.readings, tokens)
    evidence = Evidence(
        server=asked.server,
        tokens=tokens,
        max_context=max_context,
        answers=asked.answers,
        in_company=asked.in_company,
        read_texts=asked.read_texts,
        readings=witness.readings,
        rows=rows,
        fingerprint=_fingerprint(told, rows),
    )
    libraries = {} if measured is None else measured.environment.libraries
    return Served(
        precheck_version=__version__,
        model=checkpoint.id,
        revision=checkpoint.revision,
        server=asked.server,
        libraries=libraries,
        num_prompts=len(compared),
        num_positions=sum(len(compared_places(one)) for one in compared),
        distances=rows,
        fingerprint=evidence.fingerprint,
        findings=find(evidence),
        difference=first_difference(evidence),
        verdict_of_checkpoint=_verdict(report or measured, evidence),
        not_compared=_not_compared(asked, compared),
        answers=asked.answers,
        is_of_own_prompts=request.prompts is not None,
    )


def _is_known(answer: Answer, tokens: Tokens) -> bool:
    return tokens.vocabulary.has_all(answer.fed)


def _measured(
    checkpoint: Checkpoint,
    compared: tuple[Answer, ...],
    witness: ReadingWitness,
    *,
    request: VerifyRequest,
    observe: Observer,
) -> Report | None:
    """The report on the runs, which the witness reads; None where nothing was answered."""
    if not compared:
        return None
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
    observe(
        Announcement(text=f"comparing {counted(len(compared), 'answer')} in every configuration")
    )
    return judged(CheckpointSubject(checkpoint), replace(scan, witness=witness), observe=observe)


def _fingerprint(told: list[Answer], rows: tuple[ConfigurationDistance, ...]) -> Fingerprint:
    if not told:
        return fingerprint_of_tokens(rows)
    num_places = sum(len(answer.places) for answer in told)
    return fingerprint(rows, prefill_share=sum(map(num_prefill, told)) / num_places)


def _verdict(report: Report | None, evidence: Evidence) -> str | None:
    """What a scan says of the configuration that the server is like, in words."""
    nearest = evidence.nearest
    if report is None or nearest is None:
        return None
    for run in report.runs:
        if nearest.configuration in run.configurations:
            return f"{run.name} {VERBS[run.verdict]}"
    return None


def _not_compared(asked: Asked, compared: tuple[Answer, ...]) -> tuple[str, ...]:
    names = {answer.name for answer in compared}
    return tuple(
        f"{answer.name}: {_why(answer, is_compared=answer.name in names)}"
        for answer in asked.answers
        if answer.name not in names or answer.has_unknown
    )


def _why(answer: Answer, *, is_compared: bool) -> str:
    if answer.has_unknown:
        after = f" after {counted(len(answer.generated), 'token')}" if is_compared else ""
        return f"a token that the checkpoint's tokenizer does not have{after}"
    return "no usable answer"
