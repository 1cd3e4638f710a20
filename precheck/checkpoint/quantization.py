"""How a checkpoint is quantised, by its config, and who can decode it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from precheck.errors import CheckpointCorruptError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

GGUF = "gguf"
DECODED_HERE = ("gptq", "awq", "fp8", "mxfp4", "modelopt")
"""Named by a config, and decoded tensor by tensor, so they can be streamed like plain weights."""

DECODED_BY_TRANSFORMERS = {
    "compressed-tensors": "compressed-tensors",
    "bitsandbytes": "bitsandbytes",
}
"""Decoded while transformers loads the whole model, and the package that does it.

Layouts of compressed-tensors that hold floating-point numbers are decoded here as well.
"""

MODELOPT = "hf_quant_config.json"
"""Where modelopt says how it quantised; newer versions repeat it in ``config.json``."""

GPTQ_BITS = (2, 3, 4, 8)
_GPTQ_FORMATS = {"gptq": 1, "gptq_v2": 0}
"""Layouts by name, and the number to add to a stored zero point.

**Source**: ``convert_gptq_v1_to_v2_format`` in
https://github.com/ModelCloud/GPTQModel/blob/main/gptqmodel/utils/model.py
"""
_AWQ_VERSIONS = ("gemm",)
_FLOAT_FORMATS = frozenset({"nvfp4-pack-quantized", "mxfp4-pack-quantized", "float-quantized"})
"""Layouts of compressed-tensors that are decoded here.

**Source**: ``CompressionFormat`` in
https://github.com/vllm-project/compressed-tensors/blob/main/src/compressed_tensors/config/base.py
"""
_MODELOPT_ALGORITHMS = ("NVFP4", "FP8", "MIXED_PRECISION", "MXFP4")
"""In the names of those of modelopt that store floating-point numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """How weights are packed; fields are named as in ``quantization_config``."""

    method: str
    bits: int | None = None
    group_size: int | None = None
    """Input channels that share a scale; -1 for all of them."""
    desc_act: bool = False
    """Channels were quantised in the order of their activations: ``g_idx`` says which group."""
    zero_offset: int = 0
    """Added to a stored zero point."""
    block_size: tuple[int, int] | None = None
    has_float_layout: bool = False
    """Of compressed-tensors: whether all that it packs are floating-point numbers."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The whole ``quantization_config``."""

    @property
    def is_decoded_here(self) -> bool:
        """Whether each tensor can be decoded by itself."""
        return self.method in (GGUF, *DECODED_HERE) or self.has_float_layout

    def check_streamed(self, *, where: str) -> None:
        """Checks that the weights can be read when they are needed.

        Raises:
            UnsupportedModelError: transformers decodes them while it loads all of them.
        """
        if not self.is_decoded_here:
            raise UnsupportedModelError(
                f"{where!r} cannot be streamed: transformers decodes {self.method} while it loads "
                "the whole model",
                hint="omit --stream: its files are downloaded then",
            )


def read_quantization(content: Mapping[str, Any], *, where: str) -> Quantization | None:
    """The quantisation that a config names; None if the weights are plain.

    Args:
        content: of ``config.json``.
        where: the name of the folder in messages.

    Raises:
        UnsupportedModelError: a method or a layout that nothing here decodes; names it.
        CheckpointCorruptError: settings that are missing or make no sense.
    """
    settings = _declared(content)
    if settings is None:
        return None
    method = settings.get("quant_method")
    if method is None and ("load_in_4bit" in settings or "load_in_8bit" in settings):
        method = "bitsandbytes"
    read = _READERS.get(method) if isinstance(method, str) else None
    if read is not None:
        return read(settings, where=where)
    raise UnsupportedModelError(
        f"unknown quantisation: {where!r} is quantised with {method or 'an unnamed method'!r} "
        f"(expected {', '.join((*DECODED_HERE, *DECODED_BY_TRANSFORMERS))})",
        hint="scan the unquantised base model that it was made from",
    )


def _declared(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings in a config or in a part of it; empty if they are not understood."""
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    declared = [part["quantization_config"] for part in parts if part.get("quantization_config")]
    if content.get("quantization"):
        declared.append({"quant_method": "mlx"})  # MLX alone leaves the "_config" out
    if not declared:
        return None
    return declared[0] if isinstance(declared[0], dict) else {}


def with_modelopt(content: dict[str, Any], exported: Mapping[str, Any]) -> dict[str, Any]:
    """A config with the quantisation that modelopt used to write into a file of its own.

    Args:
        content: of ``config.json``; what it says of a quantisation is kept.
        exported: of ``hf_quant_config.json``.
    """
    settings = exported.get("quantization")
    if _declared(content) is not None or not isinstance(settings, dict):
        return content
    return {**content, "quantization_config": {"quant_method": "modelopt", **settings}}


def _gptq(settings: dict[str, Any], *, where: str) -> Quantization:
    bits = _number(settings, "bits", where=where)
    if bits not in GPTQ_BITS:
        raise UnsupportedModelError(
            f"GPTQ with {bits} bits: {where!r} (expected {', '.join(map(str, GPTQ_BITS))})",
            hint="scan the unquantised base model that it was made from",
        )
    layout = settings.get("checkpoint_format") or "gptq"
    if layout not in _GPTQ_FORMATS:
        raise UnsupportedModelError(
            f"GPTQ in the layout {layout!r}: {where!r} (expected {' or '.join(_GPTQ_FORMATS)})",
            hint="scan a copy in one of these layouts",
        )
    return Quantization(
        method="gptq",
        bits=bits,
        group_size=_number(settings, "group_size", where=where),
        desc_act=bool(settings.get("desc_act", False)),
        zero_offset=_GPTQ_FORMATS[layout],
        settings=settings,
    )


def _awq(settings: dict[str, Any], *, where: str) -> Quantization:
    bits = _number({"bits": settings.get("w_bit"), **settings}, "bits", where=where)
    version = str(settings.get("version", "gemm")).lower()
    if bits != 4 or version not in _AWQ_VERSIONS:  # noqa: PLR2004  AWQ is 4 bits
        raise UnsupportedModelError(
            f"AWQ with {bits} bits in the layout {version!r}: {where!r} (expected 4 bits, gemm)",
            hint="scan the unquantised base model that it was made from",
        )
    sized = {"group_size": settings.get("q_group_size"), **settings}
    group_size = _number(sized, "group_size", where=where)
    return Quantization(method="awq", bits=4, group_size=group_size, settings=settings)


def _fp8(settings: dict[str, Any], *, where: str) -> Quantization:
    match settings.get("weight_block_size"):
        case None:
            block_size = None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            block_size = (rows, columns)
        case other:
            raise CheckpointCorruptError(
                f"quantization_config of {where!r}: weight_block_size is {other!r} "
                "(expected two positive numbers)",
                hint="download config.json again",
            )
    return Quantization(method="fp8", bits=8, block_size=block_size, settings=settings)


def _modelopt(settings: dict[str, Any], *, where: str) -> Quantization:
    algorithm = str(settings.get("quant_algo")).upper()
    if not any(known in algorithm for known in _MODELOPT_ALGORITHMS):
        raise UnsupportedModelError(
            f"modelopt with {algorithm!r}: {where!r} "
            f"(expected one of {', '.join(_MODELOPT_ALGORITHMS)})",
            hint="scan the unquantised base model that it was made from",
        )
    return Quantization(method="modelopt", settings=settings)


def _compressed(settings: dict[str, Any], *, where: str) -> Quantization:
    del where  # transformers reports what it does not understand
    stored = settings.get("config_groups")
    groups = list(stored.values()) if isinstance(stored, dict) else []
    described = [group for group in groups if isinstance(group, dict)]
    formats = {str(group["format"]) for group in described if group.get("format")}
    formats = formats or {str(settings.get("format"))}
    # rotated weights, and those of which zeroes are left out, need more than their scales
    is_more = any(settings.get(part) for part in ("transform_config", "sparsity_config"))
    return Quantization(
        method="compressed-tensors",
        block_size=_block_size(described),
        has_float_layout=formats <= _FLOAT_FORMATS and not is_more,
        settings=settings,
    )


def _mxfp4(settings: dict[str, Any], *, where: str) -> Quantization:
    del where
    return Quantization(method="mxfp4", bits=4, settings=settings)


def _bitsandbytes(settings: dict[str, Any], *, where: str) -> Quantization:
    del where
    return Quantization(method="bitsandbytes", settings=settings)


def _block_size(groups: list[dict[str, Any]]) -> tuple[int, int] | None:
    """The blocks that all groups name; None where the shapes have to tell."""
    weights = [group.get("weights") for group in groups]
    blocks = [each.get("block_structure") if isinstance(each, dict) else None for each in weights]
    match blocks:
        case [[int(rows), int(columns)], *others] if rows > 0 and columns > 0:
            return (rows, columns) if all(other == blocks[0] for other in others) else None
    return None


def _number(settings: Mapping[str, Any], name: str, *, where: str) -> int:
    value = settings.get(name)
    if type(value) is not int:  # True is an int too
        raise CheckpointCorruptError(
            f"quantization_config of {where!r}: {name} is {value!r} (expected a number)",
            hint="download config.json again",
        )
    return value


_READERS: Mapping[str, Callable[..., Quantization]] = MappingProxyType(
    {
        "gptq": _gptq,
        "awq": _awq,
        "fp8": _fp8,
        "mxfp4": _mxfp4,
        "modelopt": _modelopt,
        "compressed-tensors": _compressed,
        "bitsandbytes": _bitsandbytes,
    }
)
"""What checks the settings of each method."""
