"""A section for a model card: how large the model's activations get, and what it runs in.

Published research asks for it in every model card ("Measuring Maximum Activations in Open Large
Language Models", https://arxiv.org/abs/2605.15572).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from rich.text import Text

from precheck.records.finding import USABLE, Severity, Verdict
from precheck.records.precision import Accumulation
from precheck.records.quantities import bits, counted, magnitude
from precheck.records.tightest import tightest
from precheck.render.parts import markdown
from precheck.render.parts.columns import Column
from precheck.render.parts.headline import scope
from precheck.render.parts.stored_formats.groups import plain_runs
from precheck.render.parts.stored_formats.table import format_columns, sizes_note
from precheck.render.parts.words import DASH, shown, verdict_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import ModelCardData

    from precheck.records.report import Report, Run
    from precheck.records.traces import LayerTrace

_BADGE = "https://img.shields.io/badge"
"""**Source**: https://shields.io/badges/static-badge"""
_COLOURS = {
    Verdict.SAFE: "brightgreen",
    Verdict.LOW_HEADROOM: "yellow",
    Verdict.ABSORBED: "yellow",
    Verdict.DEGRADED: "red",
    Verdict.OVERFLOW: "red",
    Verdict.FAILED: "red",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Markdown for a model card, with the figures as YAML metadata before it."""

    extension: str = ".md"

    def render(self, report: Report) -> str:
        """The section; the metadata is what huggingface_hub's ``ModelCard`` reads."""
        metadata = _metadata(report).to_yaml()
        return f"---\n{metadata}\n---\n\n" + "\n\n".join(_sections(report)) + "\n"


def _metadata(report: Report) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415  only this format needs it

    name = shown(report.model.local_id.rstrip("/").rpartition("/")[2] or "model")
    probes = counted(len(report.probes), "probe")
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="precheck-probes",
            dataset_name=f"precheck {shown(report.precheck_version)}, {probes}",
            metric_type="max_activation",
            metric_name=f"Maximum activation, {shown(run.name)}",
            metric_value=largest.abs_max,
            verified=False,
        )
        for run in plain_runs(report)
        if (largest := _largest(run)) is not None
    ]
    if not results:
        return ModelCardData(tags=["precheck"])
    return ModelCardData(tags=["precheck"], model_name=name, eval_results=results)


def _sections(report: Report) -> Iterator[str]:
    yield "## Numerical range and precision"
    yield from _badge(report)
    yield _safe(report)
    if report.runs:
        yield markdown.table(_columns(report))
    for title, columns in format_columns(report):
        note = markdown.prose(sizes_note(report))
        yield f"### {markdown.prose(title)}\n\n{markdown.table(columns)}\n\n{note}"
    yield _how(report)


def _badge(report: Report) -> Iterator[str]:
    """The verdict of what a plain load would run, as a picture.

    None where nothing was measured of it, or where its weights are broken in every dtype.
    """
    is_broken = any(
        finding.severity is Severity.ERROR and finding.is_of_checkpoint
        for finding in report.findings
    )
    runs = [run for run in report.runs if _is_deployed(report, run)]
    if runs and report.complete and not is_broken:
        gravest = min(runs, key=lambda run: list(Verdict).index(run.verdict))
        words = f"{gravest.name} {gravest.verdict.replace('_', ' ')}"
        address = f"{_BADGE}/precheck-{_badge_text(words)}-{_COLOURS[gravest.verdict]}"
        yield f"![precheck: {markdown.prose(words)}]({address})"


def _is_deployed(report: Report, run: Run) -> bool:
    """Whether a plain load would run it; with any attention where the default is not known."""
    any_attention = run.configuration.with_attention("")
    return report.model.deployed in {run.requested, run.configuration, any_attention}


def _badge_text(words: str) -> str:
    """Words as a part of the badge's address, in which a dash ends a part.

    >>> _badge_text("float16 + flash_attn-2 safe")
    'float16%20%2B%20flash__attn--2%20safe'
    """
    return quote(shown(words).replace("-", "--").replace("_", "__"), safe="")


def _safe(report: Report) -> str:
    if report.is_static:
        return "Nothing was run: no configuration was measured."
    safe = [
        markdown.code(run.name)
        for run in plain_runs(report)
        if run.verdict in USABLE and not _is_sums(run)
    ]
    unsafe = [markdown.code(run.name) for run in plain_runs(report) if run.verdict not in USABLE]
    sentences = [
        f"Measured safe: {', '.join(safe)}." if safe else "No configuration was measured safe."
    ]
    if unsafe:
        sentences.append(f"Not safe: {', '.join(unsafe)}.")
    return " ".join(sentences)


def _is_sums(run: Run) -> bool:
    """Runs that accumulate in float16 are left out: nobody would choose them."""
    return run.accumulation is Accumulation.FLOAT16


def _columns(report: Report) -> list[Column]:
    def column(header: str, cells: list[str], *, is_number: bool = False) -> Column:
        texts = [Text(cell) for cell in cells]
        return Column(header=header, cells=texts, justify="right" if is_number else "left")

    runs = plain_runs(report)
    largest = [_largest(run) for run in runs]
    return [
        column("configuration", [run.name for run in runs]),
        column("verdict", [verdict_text(run.verdict).plain for run in runs]),
        column(
            "maximum activation",
            [_reached(run) for run in runs],
            is_number=True,
        ),
        column("where", ["" if layer is None else layer.module for layer in largest]),
        column("bits of headroom", [_bits_left(report, run) for run in runs], is_number=True),
    ]


def _reached(run: Run) -> str:
    largest = _largest(run)
    if largest is not None:
        return magnitude(largest.abs_max or 0.0)
    return "not finite" if run.layers else DASH


def _bits_left(report: Report, run: Run) -> str:
    """The least over every operation, not only the residual stream."""
    limiting = tightest(report.headroom, run.configuration)
    return DASH if limiting is None or run.dtype.is_reference else bits(limiting[1])


def _largest(run: Run) -> LayerTrace | None:
    """None for a run that is not finite somewhere: what it reached before that is not a maximum."""
    if not all(layer.is_finite for layer in run.layers):
        return None
    measured = [layer for layer in run.layers if layer.abs_max is not None]
    return max(measured, key=lambda layer: layer.abs_max or 0.0, default=None)


def _how(report: Report) -> str:
    libraries = report.environment.libraries
    versions = ", ".join(
        f"{name} {libraries[name]}" for name in ("torch", "transformers") if name in libraries
    )
    devices = ", ".join(dict.fromkeys(run.device for run in report.runs)) or "no device"
    weights = report.checkpoint.digest
    sentences = [
        "Maximum activation: the largest finite value of the residual stream after any layer;",
        "headroom: log2 of the dtype's maximum over the largest value of the tightest operation;",
        f"both over {counted(report.coverage.num_tokens, 'token')}.",
        f"Measured with precheck {report.precheck_version} on {devices} with {versions};",
        f"{scope(report)}.",
        *([f"Digest of the weights: {weights}."] if weights else []),
    ]
    return markdown.prose(" ".join(sentences))
