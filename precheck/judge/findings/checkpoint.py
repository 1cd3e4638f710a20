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
    from precheck.records.stored import CheckpointAudit
    from precheck.records.traces import Headroom


_FLOAT16 = Configuration(dtype=Dtype.FLOAT16, attn_implementation="")
_OLD_OPTIMUM = (
    " optimum up to 1.20.0 adds biases to every GPTQ model, even where the checkpoint has none "
    "(https://github.com/huggingface/optimum/pull/1827)."
)
_SHARDS = (
    "An empty or flat tensor is a shard of a training run (ZeRO-3, FSDP) that saved its weights "
    "without gathering them first. "
)
_GATHER = (
    "Gather them from the training checkpoint: python zero_to_fp32.py DIR DIR (DeepSpeed puts it "
    "there). In training, save with stage3_gather_16bit_weights_on_model_save (DeepSpeed) or "
    "with a full state dict (FSDP)."
)


def has_random_parameters(audit: CheckpointAudit) -> bool:
    """Whether some of the model's parameters did not come from the checkpoint."""
    return bool(audit.missing or audit.mismatched)


def missing(evidence: Evidence) -> Iterator[Finding]:
    """Parameters that the model has and the checkpoint lacks."""
    audit = evidence.measurements.checkpoint
    elsewhere = _reported_elsewhere(audit)
    names = tuple(name for name in audit.missing if name not in elsewhere)
    if names:
        are_biases = all(name.endswith(".bias") for name in names)
        is_gptq = (evidence.measurements.model.quantization or {}).get("quant_method") == "gptq"
        yield checkpoint_error(
            "PC501",
            names=names,
            message=(
                f"Missing from the checkpoint, so newly initialised: "
                f"{counted(len(names), 'parameter')} ({listed(names)}). The outputs are random "
                "in every configuration, even where the runs look fine."
                + (_OLD_OPTIMUM if are_biases and is_gptq else "")
            ),
            advice=_cure_of_missing(audit, is_old_optimum=are_biases and is_gptq),
        )


def _cure_of_missing(audit: CheckpointAudit, *, is_old_optimum: bool) -> str:
    if is_old_optimum:
        return "Load with optimum 1.20.1 or newer, or with a config that has no biases."
    again = (
        "Download the checkpoint again, or load it with the class and the library version it was "
        "saved with."
    )
    if not audit.tieable:
        return again
    tie = audit.tieable[0]
    return (
        f'Set "tie_word_embeddings": true in config.json: {tie.source} is stored, with the shape '
        f"of {tie.name}, and tied weights are saved only once. If the head was trained "
        f"separately: {again[0].lower()}{again[1:]}"
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
                f"Stored with another shape than the model expects, so newly initialised: "
                f"{counted(len(names), 'parameter')} ({listed(_with_shapes(audit))}). "
                + (_SHARDS if are_shards else "")
                + "The outputs are random in every configuration, even where the runs look fine."
            ),
            advice=_GATHER if are_shards else "Use the config.json that belongs to these weights.",
        )


def _with_shapes(audit: CheckpointAudit) -> tuple[str, ...]:
    """Names with the shapes of the first few; shards first, because they say what happened."""
    shapes = sorted(audit.shapes, key=lambda fault: not fault.is_shard)
    described = tuple(
        f"{fault.name} {list(fault.stored)} instead of {list(fault.expected)}" for fault in shapes
    )
    return described or audit.mismatched


def _reported_elsewhere(audit: CheckpointAudit) -> frozenset[str]:
    """Missing and unexpected names that another finding accounts for."""
    packed = {name.rpartition(".")[0] for name in audit.unscaled}
    parts = (name for name in audit.unexpected if name.rpartition(".")[0] in packed)
    unpacked = (f"{module}.weight" for module in packed)
    renamed = (name for each in audit.renamings for name in (*each.parameters, *each.stored))
    return frozenset({*parts, *unpacked, *renamed, *audit.unread_scales})


def nonfinite(evidence: Evidence) -> Iterator[Finding]:
    """Stored weights that are NaN or infinite, and not because of their scales (PC610)."""
    audit = evidence.measurements.checkpoint
    by_scale = audit.scales.explained
    faults = tuple(fault for fault in audit.nonfinite if fault.name not in by_scale)
    if faults:
        names = tuple(fault.name for fault in faults)
        num_elements = sum(fault.num_elements for fault in faults)
        yield checkpoint_error(
            "PC504",
            names=names,
            message=(
                f"Stored weights are NaN or infinite: {num_elements:,} in "
                f"{counted(len(faults), 'tensor')} ({listed(names)}). "
                "Everything computed from them is NaN, in every configuration."
            ),
            advice=(
                "Use an earlier checkpoint, or redo the merge or the quantization that produced "
                "this one."
            ),
        )


def out_of_float16_range(evidence: Evidence) -> Iterator[Finding]:
    """Finite weights that become infinite in float16: a warning only where float16 is used."""
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
            f"Beyond float16's maximum of {magnitude(Dtype.FLOAT16.limits.max)}: "
            f"{counted(sum(fault.num_elements for fault in faults), 'stored weight')}{reach} "
            f"({listed(tuple(fault.name for fault in faults))}). They are infinite in float16."
        ),
        advice=cure(evidence, Mechanism.WEIGHTS, broken=_FLOAT16),
    )


_LEFT_OUT = (
    "Usually harmless (optimizer state, the head of another task). If the names look like the "
    "model's own, the wrong class was loaded."
)
_ROPE_FACTORS = "rope_freqs.weight"
_ROPE_LEFT_OUT = (
    "transformers does not read the factors of RoPE from a GGUF file, and llama.cpp does: here, "
    "positions were rotated as without them, which differs most in long texts. Scan the original "
    "checkpoint for those."
)
"""**Source**: ``rope_freqs`` in https://github.com/ggml-org/llama.cpp/blob/master/src/llama-model.cpp,
and ``load_gguf_checkpoint`` in
https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_gguf_pytorch_utils.py
"""


def unexpected(evidence: Evidence) -> Iterator[Finding]:
    """Tensors in the checkpoint that the model does not use."""
    audit = evidence.measurements.checkpoint
    elsewhere = _reported_elsewhere(audit)
    names = tuple(name for name in audit.unexpected if name not in elsewhere)
    if names:
        yield Finding(
            code="PC505",
            severity=Severity.NOTE,
            confidence=Confidence.MEASURED,
            module=names[0],
            modules=names,
            message=(
                f"{evidence.measurements.model.architecture} does not use "
                f"{counted(len(names), 'stored tensor')}: {listed(names)}."
            ),
            advice=_ROPE_LEFT_OUT if _ROPE_FACTORS in names else _LEFT_OUT,
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
                f"The config declares {model.declared_dtype}, but most weights are {stored}. "
                f'from_pretrained(dtype="auto") loads {model.declared_dtype}.'
            ),
            advice="Pass dtype= explicitly when you load the model.",
        )


def kept_in_float32(evidence: Evidence) -> Iterator[Finding]:
    """Modules that stay in float32 when loaded as float16, and only then."""
    names = evidence.measurements.checkpoint.kept_in_float32
    if not names:
        return
    needed = _needs_float32(evidence)
    why = (
        f" It has to: {needed.module} reaches {magnitude(needed.abs_max)} in float32, above "
        f"float16's maximum of {magnitude(Dtype.FLOAT16.limits.max)}."
        if needed
        else ""
    )
    finding = Finding(
        code="PC507",
        severity=Severity.WARNING if needed else Severity.NOTE,
        confidence=Confidence.PREDICTED if needed else Confidence.DOCUMENTED,
        message=(
            f"{evidence.measurements.model.architecture} keeps {listed(names)} in float32 when "
            f"it is loaded with dtype=torch.float16; the float16 verdict applies only to that.{why}"
        ),
        advice="Pass dtype= to from_pretrained; .half() on a loaded model casts these as well"
        + (", and then it overflows." if needed else "."),
    )
    yield finding.at(needed) if needed else finding


def clamps(evidence: Evidence) -> Iterator[Finding]:
    """Modeling code that clamps values to the range of a dtype: finite, but not the same."""
    lines = evidence.measurements.model.clamps
    if not lines:
        return
    yield Finding(
        code="PC509",
        severity=Severity.NOTE,
        confidence=Confidence.DOCUMENTED,
        source=lines[0],
        message=(
            f"The modeling code clamps values to the dtype's range at {listed(lines)}: an "
            "overflow there stays finite, but the value is wrong."
        ),
        advice=(
            "Judge float16 runs by their precision figures, not by being finite; bfloat16 and "
            "float32 stay far below their maximum."
        ),
    )


def _needs_float32(evidence: Evidence) -> Headroom | None:
    """The largest output of a module kept in float32, where it exceeds float16's maximum."""
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
