"""The whole comparison: ask the server, run the same tokens in every configuration, and judge."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.naming.location import open_description
from precheck.checkpoint.source import open_checkpoint
from precheck.records.outcomes.served import Served
from precheck.records.quantities import counted
from precheck.served.asking import ask
from precheck.served.compared import num_prefill
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
from precheck.served.likelihood import distances
from precheck.served.readings import compared_places
from precheck.served.runs.saved import SavedRuns
from precheck.served.runs.weights import CheckpointRuns, verdicts_of
from precheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.served import Answer, ConfigurationDistance, Fingerprint
    from precheck.records.progress import Observer
    from precheck.records.report import Report
    from precheck.served.asking import Asked
    from precheck.served.request import VerifyRequest
    from precheck.served.runs.file import SavedLogits
    from precheck.served.runs.said import Runs, Said


def verify(
    url: str,
    model: str,
    *,
    request: VerifyRequest,
    report: Report | None = None,
    logits: SavedLogits | None = None,
    observe: Observer,
) -> Served:
    """Which measured configuration of a checkpoint a running engine behaves like.

    Args:
        url: of the server.
        model: local folder, Hub id, or ``demo:NAME``.
        request: what to ask, and what to compare with.
        report: of a scan of the checkpoint, whose verdict stands beside.
        logits: what its runs said; None: they run now, and need its weights.
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
        runs = _runs(model, request=request, logits=logits, observe=observe)
        asked = ask(client, engine, runs.tokens, runs.questions(), request=request, observe=observe)
    return compare_with(runs, asked, report=report)


def _runs(
    model: str, *, request: VerifyRequest, logits: SavedLogits | None, observe: Observer
) -> Runs:
    revision, with_code = request.revision, request.trust_remote_code
    if logits is not None:
        description = open_description(model, revision=revision, trust_remote_code=with_code)
        return SavedRuns.of(description, logits)
    checkpoint = open_checkpoint(
        model, revision=revision, trust_remote_code=with_code, observe=observe
    )
    return CheckpointRuns.of(checkpoint, request, observe=observe)


def compare_with(runs: Runs, asked: Asked, *, report: Report | None) -> Served:
    """What the runs say of what the server read and wrote, and what the differences mean.

    Args:
        runs: of the checkpoint.
        asked: the server's answers.
        report: of a scan, for its verdict.

    Raises:
        PrecheckError: the checkpoint cannot be run.
    """
    said = runs.say(asked.answers)
    told = [answer for answer in said.answers if answer.places]
    rows = distances(told or said.answers, said.readings, said.failures)
    if not told:
        rows = with_contradictions(rows, said.answers, said.readings, runs.tokens)
    cut = {answer.name: answer for answer in said.answers}
    evidence = Evidence(
        server=asked.server,
        tokens=runs.tokens,
        max_context=runs.max_context,
        written=asked.answers,
        answers=tuple(cut.get(answer.name, answer) for answer in asked.answers),
        in_company=asked.in_company,
        is_saved=runs.saved_weights is not None,
        read_texts=asked.read_texts,
        readings=said.readings,
        rows=rows,
        fingerprint=_fingerprint(told, rows),
    )
    verdicts = said.verdicts if report is None else verdicts_of(report)
    nearest = evidence.nearest
    return Served(
        precheck_version=__version__,
        model=runs.id,
        revision=runs.revision,
        saved_weights=runs.saved_weights,
        server=asked.server,
        libraries=said.libraries,
        num_prompts=len(said.answers),
        num_positions=sum(len(compared_places(one)) for one in said.answers),
        distances=rows,
        fingerprint=evidence.fingerprint,
        findings=find(evidence),
        difference=first_difference(evidence),
        verdict_of_checkpoint=None if nearest is None else verdicts.get(nearest.configuration),
        not_compared=tuple(_not_compared(asked, said)),
        answers=asked.answers,
        is_of_own_prompts=runs.is_of_own_prompts,
    )


def _fingerprint(told: list[Answer], rows: tuple[ConfigurationDistance, ...]) -> Fingerprint:
    if not told:
        return fingerprint_of_tokens(rows)
    num_places = sum(len(answer.places) for answer in told)
    return fingerprint(rows, prefill_share=sum(map(num_prefill, told)) / num_places)


def _not_compared(asked: Asked, said: Said) -> Iterator[str]:
    """What is not, and why."""
    names = {answer.name for answer in said.answers}
    for answer in asked.answers:
        why = said.not_compared.get(answer.name)
        if why is None and answer.has_unknown:
            after = f" after {counted(len(answer.generated), 'token')}"
            why = "a token that the checkpoint's tokenizer does not have"
            why += after if answer.name in names else ""
        elif why is None and answer.name not in names:
            why = "no usable answer"
        if why is not None:
            yield f"{answer.name}: {why}"
