"""Findings on names, scales, ties and zeros of stored tensors; each says what was intended."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from precheck.judge.findings.checkpoint import checkpoint_error
from precheck.records.finding import Confidence, Finding, Severity
from precheck.records.quantities import counted, listed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.stored import Renaming

_RENAMING = """\
import json
import re
from pathlib import Path
from safetensors.torch import load_file, save_file

def renamed(name):
{steps}
    return name

for file in Path({folder}).glob("*.safetensors"):
    tensors = {{renamed(name): tensor for name, tensor in load_file(file).items()}}
    save_file(tensors, file.with_suffix(".new"), metadata={{"format": "pt"}})
    file.with_suffix(".new").replace(file)

for file in Path({folder}).glob("*.safetensors.index.json"):
    index = json.loads(file.read_text())
    names = index["weight_map"].items()
    index["weight_map"] = {{renamed(name): shard for name, shard in names}}
    file.write_text(json.dumps(index, indent=2))
"""
"""Python that renames tensors in their files.

``save_pretrained`` of a model that was loaded with ``key_mapping`` would not do: it maps back.
"""


def renamed(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that are stored under names that differ from the model's in one part."""
    renamings = evidence.measurements.checkpoint.renamings
    if not renamings:
        return
    names = tuple(name for renaming in renamings for name in renaming.parameters)
    yield checkpoint_error(
        "PC514",
        names=names,
        message=(
            f"Stored under other names: {counted(len(names), 'parameter')}; "
            + "; ".join(map(_difference, renamings))
            + ". Nothing is loaded into these parameters: they are newly initialised, and the "
            "outputs are random."
        ),
        advice="Rename them in the files; this changes nothing else:",
        snippet=_RENAMING.format(
            steps="\n".join(map(_step, renamings)),
            folder=repr(evidence.measurements.model.local_id),
        ),
    )


def unscaled(evidence: Evidence) -> Iterator[Finding]:
    """Packed weights that are used without their scale, or scales that nothing reads."""
    audit = evidence.measurements.checkpoint
    scales = audit.unread_scales
    if audit.unscaled:
        are_used = set(audit.unscaled).isdisjoint(audit.unexpected)
        consequence = (
            "Without their scales they are the wrong numbers, in every configuration."
            if are_used
            else "The parameters they encode are newly initialised, so the outputs are random."
        )
        cause, advice = _cause(evidence)
        yield checkpoint_error(
            "PC511",
            names=audit.unscaled,
            message=(
                f"{'Used without a scale' if are_used else 'Packed, but nothing unpacks them'}: "
                f"{counted(len(audit.unscaled), 'weight')} ({listed(audit.unscaled)}). {cause} "
                f"{consequence}"
            ),
            advice=advice,
        )
    elif scales:
        yield checkpoint_error(
            "PC511",
            names=scales,
            message=(
                f"Stored but not read: {counted(len(scales), 'scale')} ({listed(scales)}), while "
                "their weights are used as stored. If the weights were cast without being "
                "multiplied, each is wrong by its scale."
            ),
            advice=(
                "Restore the quantization_config that belongs to them in config.json; if the "
                "weights are already multiplied, delete the scales."
            ),
        )


def _cause(evidence: Evidence) -> tuple[str, str]:
    """Why packed weights have no scale, and what to do."""
    scales = evidence.measurements.checkpoint.unread_scales
    settings = evidence.measurements.model.quantization
    if not scales:
        advice = (
            "Use the checkpoint that was saved with its scales, or quantise again. Weights that "
            "were cast straight to float8 have lost all values outside its range: start from the "
            "weights before that cast."
        )
        return "No scale is stored for them.", advice
    stored = f"Their scales are stored ({listed(scales)}), but nothing reads them"
    if settings is None:
        return (
            f"{stored}: config.json has no quantization_config.",
            "Restore the quantization_config that the exporter wrote in config.json.",
        )
    method = settings.get("quant_method")
    return (
        f"{stored}: config.json names {method}, whose scales have other names.",
        "Restore the exporter's quantization_config in config.json, or export again.",
    )


def untied(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that the config ties, but that are stored with different values."""
    ties = evidence.measurements.checkpoint.untied
    if ties:
        first = ties[0]
        yield checkpoint_error(
            "PC513",
            names=tuple(name for tie in ties for name in (tie.name, tie.source)),
            message=(
                f"Tied in config.json, but stored with different values: {first.name} and "
                f"{first.source}. transformers 5 keeps both and warns, and that is what was "
                f"measured; transformers 4, vLLM and SGLang use {first.source} for both, which is "
                "a different model."
            ),
            advice=(
                f'Set "tie_word_embeddings": false in config.json if {first.name} was trained or '
                f"merged separately; otherwise delete it from the file."
            ),
        )


def all_zero(evidence: Evidence) -> Iterator[Finding]:
    """Weights that are all zero: because of their scales, or unlike those of other layers."""
    audit = evidence.measurements.checkpoint
    if audit.zero_scales:
        names = audit.zero_scales
        yield checkpoint_error(
            "PC512",
            names=names,
            message=(
                f"All scales are zero, and so are the weights: {counted(len(names), 'tensor')} "
                f"({listed(names)}). Their output is zero for every input."
            ),
            advice="Quantise the model again: no calibration produces such scales.",
        )
    elsewhere = {*audit.zero_scales, *audit.scales.explained}
    names = tuple(name for name in audit.all_zero if name not in elsewhere)
    if names:
        yield Finding(
            code="PC512",
            severity=Severity.WARNING,
            confidence=Confidence.MEASURED,
            module=names[0],
            modules=names,
            message=(
                f"All zero: {counted(len(names), 'stored weight')} ({listed(names)}), "
                "unlike those of other layers. Their output is zero for every input."
            ),
            advice=(
                "Compare with the checkpoint that this one was made from; a weight that is zero by "
                "design is fine."
            ),
        )


def _difference(renaming: Renaming) -> str:
    """In words, which part differs."""
    where = "names begin with" if renaming.is_prefix else "names contain"
    example = f"({renaming.stored[0]})"
    if renaming.old and renaming.new:
        return f"{where} {renaming.old!r} instead of {renaming.new!r} {example}"
    if renaming.old:
        return f"{where} {renaming.old!r} {example}"
    return f"names lack {renaming.new!r} {example}"


def _step(renaming: Renaming) -> str:
    """A line of Python that exchanges the part in one name."""
    if renaming.old:
        escaped = re.escape(renaming.old)
        pattern = f"^{escaped}" if renaming.is_prefix else rf"(?<=\.){escaped}"
    else:  # other names may have the part already
        heads = sorted({re.escape(name.partition(".")[0]) for name in renaming.stored})
        pattern = rf"^(?=({'|'.join(heads)})\.)"
    return f"    name = re.sub({pattern!r}, {renaming.new!r}, name)"
