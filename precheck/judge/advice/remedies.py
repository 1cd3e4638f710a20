"""Smaller remedies than another dtype, where float16 fails and only float32 is left."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from precheck.facts.hardware import is_slow
from precheck.judge.findings.cures import may_be_rescaled
from precheck.records.advice import Remedy
from precheck.records.finding import Confidence, Verdict
from precheck.records.mechanism import MECHANISMS, Mechanism
from precheck.records.precision import Dtype
from precheck.records.quantities import counted, magnitude

if TYPE_CHECKING:
    from precheck.facts.hardware import Hardware
    from precheck.judge.evidence import Evidence
    from precheck.records.configuration import Configuration
    from precheck.records.report import Run
    from precheck.records.traces import Headroom

_LIMIT = Dtype.FLOAT16.limits.max


def remedies(
    evidence: Evidence, *, device: Hardware, chosen: Configuration | None
) -> tuple[Remedy, ...]:
    """What might help besides float32 on a device without bfloat16; nothing elsewhere.

    One module kept in float32 helps where everything that exceeds float16 is inside it and its
    output fits. The residual stream belongs to no module, and a linear layer passes on its result
    as it is.
    """
    if chosen is None or not chosen.dtype.is_reference or not is_slow(Dtype.BFLOAT16, device):
        return ()
    broken = [
        run
        for run in evidence.runs
        if run.dtype is Dtype.FLOAT16
        and run.verdict is Verdict.OVERFLOW
        and run.configuration.is_plain
    ]
    if not broken:
        return ()
    return (_one_module(evidence, broken), *_rescaled(evidence, broken), *_clamp(broken))


def _float32_module(evidence: Evidence) -> str | None:
    """The one module with everything that exceeds float16 inside, and an output that fits."""
    outside = _beyond_float16(evidence)
    if not outside or any(_is_handed_on(row) for row in outside):
        return None
    module = _common(tuple(row.module for row in outside))
    return module if module is not None and _is_inside_a_layer(module) else None


def _one_module(evidence: Evidence, broken: list[Run]) -> Remedy:
    outside = _beyond_float16(evidence)
    handed_on = [row for row in outside if _is_handed_on(row)]
    if handed_on:
        layers = sorted({row.layer for row in handed_on if row.layer is not None})
        largest = max(handed_on, key=lambda row: row.abs_max)
        where = f"layer {layers[0]}" if len(layers) == 1 else f"{counted(len(layers), 'layer')}"
        return Remedy(
            what="one module in float32, the rest in float16",
            helps=False,
            confidence=Confidence.PREDICTED,
            why=(
                f"{largest.mechanism.phrase} exceeds float16's maximum in {where} (up to "
                f"{magnitude(largest.abs_max)}), and the next layer gets that as its input"
            ),
        )
    module = _float32_module(evidence)
    if module is None:
        names = {row.module for row in outside}
        return Remedy(
            what="one module in float32, the rest in float16",
            helps=False,
            confidence=Confidence.PREDICTED,
            why=(
                f"not one module but {len(names):,} exceed float16's maximum"
                if names
                else f"what breaks ({broken[0].reason}) is not the output of a module"
            ),
        )
    return Remedy(
        what=f"{module} in float32, the rest in float16",
        helps=True,
        confidence=Confidence.PREDICTED,
        why=(
            f"everything beyond float16's maximum is inside it (up to "
            f"{magnitude(max(row.abs_max for row in outside))}), and its output fits"
        ),
        snippet=_snippet(module),
    )


def _rescaled(evidence: Evidence, broken: list[Run]) -> tuple[Remedy, ...]:
    """``precheck fix``, where everything that exceeds float16 is of the kind that it rescales."""
    escaped = [row.mechanism for run in broken for row in run.overflows if not row.absorbed]
    mechanisms = dict.fromkeys((*escaped, *(row.mechanism for row in _beyond_float16(evidence))))
    if not escaped or not may_be_rescaled(evidence, mechanisms):
        return ()
    model = shlex.quote(evidence.measurements.model.id)
    return (
        Remedy(
            what="precheck fix, which multiplies weights by powers of two",
            helps=True,
            confidence=Confidence.PREDICTED,
            why=(
                f"{' and '.join(each.phrase for each in mechanisms)} can be scaled down without "
                "changing a digit of the answer; it writes nothing that it cannot prove"
            ),
            snippet=f"precheck fix {model} -o ./fixed",
        ),
    )


def _clamp(broken: list[Run]) -> tuple[Remedy, ...]:
    return (
        Remedy(
            what="clamping, or remove_invalid_values",
            helps=False,
            confidence=Confidence.DOCUMENTED,
            why=(
                f"{broken[0].name} would be finite but wrong: gemma-3-12b, clamped, has gsm8k "
                "0.647 instead of 0.874 (https://github.com/huggingface/transformers/pull/36832)"
            ),
        ),
    )


def _beyond_float16(evidence: Evidence) -> list[Headroom]:
    """What exceeds float16 even where attention keeps its scores in float32."""
    return [
        row
        for row in evidence.measurements.headroom
        if row.abs_max > _LIMIT and not MECHANISMS[row.mechanism].is_in_scores and row.headroom_bits
    ]


def _is_handed_on(row: Headroom) -> bool:
    """Whether the value that exceeds float16 is the module's output, to be cast to float16."""
    return MECHANISMS[row.mechanism].enters_residual or row.mechanism is Mechanism.PROJECTION


def _common(modules: tuple[str, ...]) -> str | None:
    """The module that all of them are or lie in; None for the whole model.

    >>> _common(("model.layers.3.mlp", "model.layers.3.mlp.down_proj"))
    'model.layers.3.mlp'
    """
    first, *others = [module.split(".") for module in modules]
    num_shared = 0
    while num_shared < len(first) and all(
        parts[num_shared : num_shared + 1] == [first[num_shared]] for parts in others
    ):
        num_shared += 1
    return ".".join(first[:num_shared]) or None


def _is_inside_a_layer(module: str) -> bool:
    """Whether it is smaller than a decoder layer, whose name ends in its number.

    >>> [_is_inside_a_layer(f"model.layers{rest}") for rest in ("", ".3", ".3.mlp")]
    [False, False, True]
    """
    return any(part.isdigit() for part in module.split(".")[:-1])


def _snippet(module: str) -> str:
    """Python that keeps one module in float32 inside a float16 model."""
    return f"""module = model.get_submodule("{module}").float()
module.register_forward_pre_hook(lambda _, x: (x[0].float(), *x[1:]))
module.register_forward_hook(lambda _, x, y: y.half())"""
