"""Findings on what is stored, before anything runs (PC5xx)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.judge.findings.cures import cure
from precheck.records.configuration import Configuration
from precheck.records.finding import USABLE, Confidence, Finding, Severity
from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from precheck.records.quantities import counted, listed, magnitude

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.judge.evidence import Evidence
    from precheck.records.report import CheckpointAudit
    from precheck.records.traces import Headroom


_FLOAT16 = Configuration(dtype=Dtype.FLOAT16, attn_implementation="")
_OLD_OPTIMUM = (
    " Biases that a GPTQ checkpoint does not have are what optimum up to 1.20.0 creates, whatever "
    "the config says (https://github.com/huggingface/optimum/pull/1827)."
)
_SHARDS = (
    "An empty or a flat tensor is the shard of a training run (ZeRO-3, FSDP) that did not gather "
    "its weights before it saved them. "
)
_GATHER = (
    "Gather them from the training checkpoint: python zero_to_fp32.py DIR DIR (DeepSpeed wrote it "
    "there). While training, save with stage3_gather_16bit_weights_on_model_save (DeepSpeed) or "
    "with a full state dict (FSDP)."
)


def has_random_parameters(audit: CheckpointAudit) -> bool:
    """Whether some of the model's parameters did not come from the checkpoint."""
    return bool(audit.missing or audit.mismatched)


def missing(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that the model has and the checkpoint lacks."""
    audit = evidence.measurements.checkpoint
    elsewhere = _told_elsewhere(audit)
    names = tuple(name for name in audit.missing if name not in elsewhere)
    if names:
        are_biases = all(name.endswith(".bias") for name in names)
        is_gptq = (evidence.measurements.model.quantization or {}).get("quant_method") == "gptq"
        yield checkpoint_error(
            "PC501",
            names=names,
            message=(
                f"Missing from the checkpoint, so newly initialised: "
                f"{counted(len(names), 'parameter')} ({listed(names)}). The outputs are random, in "
                "every configuration, whatever the runs look like."
                + (_OLD_OPTIMUM if are_biases and is_gptq else "")
            ),
            advice=_cure_of_missing(audit, is_old_optimum=are_biases and is_gptq),
        )


def _cure_of_missing(audit: CheckpointAudit, *, is_old_optimum: bool) -> str:
    if is_old_optimum:
        return "Load with optimum 1.20.1 or newer, or with a config that has no biases."
    again = (
        "Download the checkpoint again, or load it with the class and the library version it was "
        "saved for."
    )
    if not audit.tieable:
        return again
    tie = audit.tieable[0]
    return (
        f'Set "tie_word_embeddings": true in config.json: {tie.source} is stored and has the shape '
        f"of {tie.name}, and a head that shares it is not saved twice. If the head was trained by "
        f"itself: {again[0].lower()}{again[1:]}"
    )


def mismatched(evidence: Evidence) -> Iterator[Finding]:
    """Parameters whose stored shape is not the model's."""
    audit = evidence.measurements.checkpoint
    names = audit.mismatched
    if names:
        are_shards = any(fault.is_shard for fault in audit.shapes)
        yield checkpoint_error(
            "PC502",
            names=names,
            message=(
                f"Stored in another shape than the model's, so newly initialised: "
                f"{counted(len(names), 'parameter')} ({listed(_with_shapes(audit))}). "
                + (_SHARDS if are_shards else "")
                + "The outputs are random, in every configuration, whatever the runs look like."
            ),
            advice=_GATHER if are_shards else "Use the config.json that belongs to these weights.",
        )


def _with_shapes(audit: CheckpointAudit) -> tuple[str, ...]:
    """Names with the shapes of the first few; shards first, because they say what happened."""
    shapes = sorted(audit.shapes, key=lambda fault: not fault.is_shard)
    told = tuple(
        f"{fault.name} {list(fault.stored)} in place of {list(fault.expected)}" for fault in shapes
    )
    return told or audit.mismatched


def _told_elsewhere(audit: CheckpointAudit) -> frozenset[str]:
    """Missing and unexpected names that another finding accounts for."""
    packed = {name.rpartition(".")[0] for name in audit.unscaled}
    parts = (name for name in audit.unexpected if name.rpartition(".")[0] in packed)
    unpacked = (f"{module}.weight" for module in packed)
    renamed = (name for each in audit.renamings for name in (*each.parameters, *each.stored))
    return frozenset({*parts, *unpacked, *renamed, *audit.unread_scales})


def nonfinite(evidence: Evidence) -> Iterator[Finding]:
    """Weights that are NaN or infinite as they are stored."""
    faults = evidence.measurements.checkpoint.nonfinite
    if faults:
        names = tuple(fault.name for fault in faults)
        num_elements = sum(fault.num_elements for fault in faults)
        yield checkpoint_error(
            "PC504",
            names=names,
            message=(
                f"Stored weights are NaN or infinite: {num_elements:,} in "
                f"{counted(len(faults), 'tensor')} ({listed(names)}). "
                "Whatever they touch is NaN, in every configuration."
            ),
            advice=(
                "Take an earlier checkpoint, or repeat the merge or the quantization that wrote "
                "this one."
            ),
        )


def out_of_float16_range(evidence: Evidence) -> Iterator[Finding]:
    """Finite weights that are infinite in float16; a worry only where float16 is used."""
    faults = evidence.measurements.checkpoint.out_of_float16_range
    if not faults:
        return
    runs = tuple(index for index, run in enumerate(evidence.runs) if run.dtype is Dtype.FLOAT16)
    is_broken = any(evidence.runs[index].verdict not in USABLE for index in runs)
    largest = max((fault.abs_max for fault in faults if fault.abs_max is not None), default=None)
    reach = f", up to {magnitude(largest)}" if largest is not None else ""
    yield Finding(
        code="PC503",
        severity=Severity.WARNING if is_broken else Severity.NOTE,
        confidence=Confidence.MEASURED,
        runs=runs,
        module=faults[0].name,
        modules=tuple(fault.name for fault in faults),
        message=(
            f"Outside float16, which ends at {magnitude(Dtype.FLOAT16.limits.max)}: "
            f"{counted(sum(fault.num_elements for fault in faults), 'stored weight')}{reach} "
            f"({listed(tuple(fault.name for fault in faults))}). In float16 that is infinite."
        ),
        advice=cure(evidence, Mechanism.WEIGHTS, broken=_FLOAT16),
    )


def unexpected(evidence: Evidence) -> Iterator[Finding]:
    """Tensors in the checkpoint that the model has no place for."""
    audit = evidence.measurements.checkpoint
    elsewhere = _told_elsewhere(audit)
    names = tuple(name for name in audit.unexpected if name not in elsewhere)
    if names:
        yield Finding(
            code="PC505",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            module=names[0],
            modules=names,
            message=(
                f"{evidence.measurements.model.architecture} has no place for "
                f"{counted(len(names), 'stored tensor')}: {listed(names)}."
            ),
            advice=(
                "Usually harmless (an optimizer state, a head of another task). If the names look "
                "like the model's, the wrong class was loaded."
            ),
        )


def declares_another_dtype(evidence: Evidence) -> Iterator[Finding]:
    """A config that names another dtype than its tensors have."""
    model = evidence.measurements.model
    floating = {name: size for name, size in model.tensor_dtypes.items() if name in set(Dtype)}
    stored = max(floating, key=floating.__getitem__) if floating else None
    if model.declared_dtype is not None and stored not in {None, model.declared_dtype}:
        yield Finding(
            code="PC506",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            message=(
                f"The config declares {model.declared_dtype}, most weights are stored as {stored}. "
                f'from_pretrained(dtype="auto") loads {model.declared_dtype}.'
            ),
            advice="Name the dtype where the model is loaded.",
        )


def kept_in_float32(evidence: Evidence) -> Iterator[Finding]:
    """Modules that stay in float32 when loaded as float16, and only then."""
    names = evidence.measurements.checkpoint.kept_in_float32
    if not names:
        return
    needed = _needs_float32(evidence)
    why = (
        f" With reason: {needed.module} takes {magnitude(needed.abs_max)} in float32, float16 ends "
        f"at {magnitude(Dtype.FLOAT16.limits.max)}."
        if needed
        else ""
    )
    finding = Finding(
        code="PC507",
        severity=Severity.WARNING if needed else Severity.NOTE,
        confidence=Confidence.PREDICTED if needed else Confidence.DOCUMENTED,
        message=(
            f"{evidence.measurements.model.architecture} keeps {listed(names)} in float32 when "
            f"it is loaded with dtype=torch.float16; the float16 verdict holds for that only.{why}"
        ),
        advice="Pass dtype= to from_pretrained; .half() on a loaded model casts these as well"
        + (", and it overflows." if needed else "."),
    )
    yield finding.at(needed) if needed else finding


def clamps(evidence: Evidence) -> Iterator[Finding]:
    """Modeling code that clamps values into the range of a dtype: finite, and not the same."""
    lines = evidence.measurements.model.clamps
    if not lines:
        return
    yield Finding(
        code="PC509",
        severity=Severity.NOTE,
        confidence=Confidence.DOCUMENTED,
        source=lines[0],
        message=(
            f"The modeling code clamps values into a dtype's range at {listed(lines)}: what "
            "overflows there stays finite, and is another value."
        ),
        advice=(
            "Trust the precision figures of float16 runs, not that they are finite; bfloat16 and "
            "float32 do not come near the limit."
        ),
    )


def _needs_float32(evidence: Evidence) -> Headroom | None:
    """The largest output of a module kept in float32, where float16 would not hold it."""
    kept = evidence.measurements.checkpoint.kept_in_float32
    too_large = [
        row
        for row in evidence.measurements.headroom
        if row.module in kept
        and Dtype.FLOAT16 not in row.headroom_bits
        and row.abs_max > Dtype.FLOAT16.limits.max
    ]
    return max(too_large, key=lambda row: row.abs_max, default=None)


def checkpoint_error(
    code: str, *, names: tuple[str, ...], message: str, advice: str, snippet: str = ""
) -> Finding:
    """What is wrong with the weights themselves, so with every run."""
    return Finding(
        code=code,
        severity=Severity.ERROR,
        confidence=Confidence.MEASURED,
        module=names[0],
        modules=names,
        message=message,
        advice=advice,
        snippet=snippet,
        in_vain="Another dtype, attention implementation or sampling setting does not help.",
    )
