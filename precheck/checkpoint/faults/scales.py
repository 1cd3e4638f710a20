"""Weights that are stored with a scale, and whether something reads it.

Names of the formats' parts, not of modules: what a packed weight and its scale are called is fixed
by the library that wrote them.

**Source**: ``update_weight_conversions`` in
https://github.com/huggingface/transformers/blob/main/src/transformers/quantizers/quantizer_finegrained_fp8.py
(``weight_scale_inv``, ``scale``, ``qscale_weight``);
https://github.com/vllm-project/compressed-tensors (``weight_packed``, ``weight_scale``);
https://github.com/huggingface/transformers/blob/main/src/transformers/integrations/mxfp4.py
(``_blocks``, ``_scales``);
https://github.com/bitsandbytes-foundation/bitsandbytes/blob/main/bitsandbytes/nn/modules.py
(``absmax``, ``SCB``)
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from torch import Tensor

    from precheck.checkpoint.quantization import Quantization

FP8_SCALE = "_scale_inv"
"""What the FP8 format of transformers adds to the name of a weight."""
GLOBAL_SCALES = (".weight_scale_2", ".weight_global_scale")
"""Ends of the names of the one factor that NVFP4 has besides those of its blocks."""
INPUT_SCALES = (".input_scale", ".input_global_scale", ".activation_scale", ".qscale_act")
"""Ends of the names of static scales of a linear's input."""
CACHE_SCALES = (
    *(".k_scale", ".v_scale", ".q_scale", ".kv_scale"),
    *(".k_proj.output_scale", ".v_proj.output_scale", ".prob_scale", ".prob_output_scale"),
)
"""Ends of the names of scales of keys, values, queries and probabilities.

**Source**: ``maybe_remap_kv_scale_name`` in
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/model_loader/weight_utils.py
"""
_LAYER = re.compile(r"\.(\d+)\.")
_BYTES = frozenset({"int8", "uint8"})
_WEIGHT = ".weight"
_BLOCKS = "_blocks"


def is_float8(dtype: str) -> bool:
    """Whether weights in this dtype need a scale; float8 that holds exponents alone is one.

    >>> is_float8("float8_e4m3fn"), is_float8("float8_e8m0fnu")
    (True, False)
    """
    return dtype.startswith("float8") and "e8m0" not in dtype


def fp8_scales(weight: str) -> tuple[str, ...]:
    """Names under which the FP8 scale of a weight may be stored.

    >>> fp8_scales("lm_head.weight")
    ('lm_head.weight_scale_inv', 'lm_head.scale', 'lm_head.qscale_weight')
    """
    if not weight.endswith(_WEIGHT):  # experts in one tensor
        return f"{weight}{FP8_SCALE}", f"{weight}_scale"
    module = weight.removesuffix(_WEIGHT)
    return f"{weight}{FP8_SCALE}", f"{module}.scale", f"{module}.qscale_weight"


def scales_of(weight: str) -> tuple[str, ...]:
    """Names that any of the formats gives the scale of this stored weight.

    >>> scales_of("a.qweight"), scales_of("a.down_proj_blocks")
    (('a.scales',), ('a.down_proj_scales',))
    """
    module, _, part = weight.rpartition(".")
    if part == "qweight":
        return (f"{module}.scales",)
    if part == "weight_packed":
        return (f"{module}.weight_scale",)
    if part.endswith(_BLOCKS):
        return (f"{weight.removesuffix(_BLOCKS)}_scales",)
    others = ("weight_scale", "scales", "scale_weight", "SCB", "weight.absmax")
    return (*fp8_scales(weight), *(f"{module}.{other}" for other in others))


def scales_of_packed(stored: Mapping[str, str]) -> frozenset[str]:
    """Names that scales of the packed weights may have.

    Args:
        stored: the torch name of each stored tensor's dtype.
    """
    packed = (name for name, dtype in stored.items() if needs_scale(name, dtype))
    return frozenset(scale for name in packed for scale in scales_of(name))


def unscaled_weights(
    stored: Mapping[str, str], quantization: Quantization | None, *, decoded_from: Collection[str]
) -> Iterator[str]:
    """Packed weights that are used without a scale.

    Args:
        stored: the torch name of each stored tensor's dtype.
        quantization: what the config names.
        decoded_from: tensors that are read, with their scales, by what decodes here.
    """
    for name, dtype in stored.items():
        if not needs_scale(name, dtype) or name in decoded_from:
            continue
        by_transformers = quantization is not None and not quantization.is_decoded_here
        if not (by_transformers and any(scale in stored for scale in scales_of(name))):
            yield name


def unread_scales(
    stored: Iterable[str], *, unexpected: Collection[str], unscaled: Collection[str]
) -> Iterator[str]:
    """Scales that nothing takes, although what they scale is needed.

    Args:
        stored: names of the stored tensors.
        unexpected: those that the model does not use.
        unscaled: packed weights without a scale.
    """
    for name in stored:
        if name not in unexpected or name in unscaled:
            yield from (scale for scale in scales_of(name) if scale in unexpected)


def weight_name(packed: str) -> str:
    """What a packed weight is once it is decoded.

    >>> weight_name("a.qweight"), weight_name("a.weight"), weight_name("a.down_proj_blocks")
    ('a.weight', 'a.weight', 'a.down_proj')
    """
    module, _, part = packed.rpartition(".")
    if part in {"qweight", "weight_packed"}:
        return f"{module}.weight"
    return packed.removesuffix(_BLOCKS)


def is_divisor(scale: str) -> bool:
    """Whether values are divided by it; compressed-tensors stores the two of NVFP4 so.

    >>> is_divisor("a.weight_global_scale"), is_divisor("a.weight_scale_2")
    (True, False)
    """
    return scale.endswith("_global_scale")


def needs_scale(name: str, dtype: str) -> bool:
    """Whether a stored tensor is a weight that means nothing without a scale."""
    part = name.rpartition(".")[2]
    if is_float8(dtype):
        return "scale" not in part  # NVFP4 keeps its scales in float8
    if dtype in _BYTES and (part == "weight" or part.endswith(_BLOCKS)):
        return True
    return part in {"qweight", "weight_packed"}


def cache_scales(stored: Mapping[str, Tensor]) -> dict[str, float]:
    """The scale of the keys and of the values of each layer that has one, by part: ``3.keys``.

    Of several in a layer (one for each head) the largest counts, which clips nothing.

    Args:
        stored: the tensors of a checkpoint by name; only scales are read.
    """
    found: dict[str, float] = {}
    for name in stored:
        layer = _LAYER.search(name)
        end = name.removesuffix(".output_scale").rpartition(".")[2]
        parts = {"k": ("keys",), "v": ("values",), "kv": ("keys", "values")}
        if layer is None or not name.endswith(CACHE_SCALES):
            continue
        for part in parts.get(end.partition("_")[0], ()):
            found[f"{layer[1]}.{part}"] = float(stored[name].float().max())
    return found
