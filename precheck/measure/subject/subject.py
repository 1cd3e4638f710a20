"""What is scanned: a checkpoint, or a live module. Both answer the same questions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from precheck.checkpoint.quantization import DECODED_BY_TRANSFORMERS
from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.errors import UnsupportedModelError
from precheck.measure.models.model_dtypes import main_dtype
from precheck.measure.models.resident import LiveModels, ResidentModels
from precheck.measure.models.streamed import StreamedModels

if TYPE_CHECKING:
    from torch import nn

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.models.shared import SharedModels

KERNELS_ADD_UP_IN_FLOAT16 = frozenset({"gptq", "awq"})
"""Quantisations whose kernels may: exllama v2 (https://github.com/QwenLM/Qwen3/issues/951) and
AutoAWQ's (https://github.com/casper-hansen/AutoAWQ/issues/458)."""


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointSubject:
    """A checkpoint on disk, whose headers were read when it was opened."""

    checkpoint: Checkpoint
    tokenizer: ClassVar[None] = None
    """It is read from its files."""

    @property
    def name(self) -> str:
        """As the user called it."""
        return self.checkpoint.id

    @property
    def revision(self) -> str | None:
        """Commit on the Hub; None for a local folder."""
        return self.checkpoint.revision

    @property
    def stored_bytes(self) -> int:
        """Size of its weight files."""
        return self.checkpoint.headers.size_bytes

    @property
    def tensor_dtypes(self) -> dict[str, int]:
        """Stored elements by dtype name."""
        return self.checkpoint.headers.elements_by_dtype

    @property
    def declared_dtype(self) -> str | None:
        """The dtype its config says it runs in."""
        dtype = getattr(self.checkpoint.config, "dtype", None)
        return None if dtype is None else dtype_name(dtype)

    @property
    def quantization(self) -> dict[str, Any] | None:
        """Those settings of its quantisation that are plain values, and who decodes it."""
        quantization = self.checkpoint.quantization
        if quantization is None:
            return None
        plain = {
            name: value
            for name, value in quantization.settings.items()
            if value is None or isinstance(value, str | int | float | bool)
        }
        method = quantization.method
        decoder = "precheck" if quantization.is_decoded_here else DECODED_BY_TRANSFORMERS[method]
        return {
            **plain,
            "quant_method": method,
            "decoded_by": decoder,
            "num_linears_without_bias": self.checkpoint.headers.num_packed_without_bias,
        }

    @property
    def may_add_up_in_float16(self) -> bool:
        """Whether some kernels for its packed weights accumulate in float16."""
        quantization = self.checkpoint.quantization
        return quantization is not None and quantization.method in KERNELS_ADD_UP_IN_FLOAT16

    def models(self, *, device: str, is_resident: bool) -> SharedModels:
        """Its model in every dtype; weights are read when they are needed, unless resident."""
        if is_resident or self.checkpoint.is_decoded_by_transformers:
            return ResidentModels(self.checkpoint, device=device)
        return StreamedModels(self.checkpoint, device=device)


@dataclass(frozen=True, slots=True, eq=False)
class LiveSubject:
    """A module in memory: it has no files and no processor."""

    module: nn.Module
    tokenizer: object = None
    """The caller's; None without one."""
    checkpoint: ClassVar[None] = None
    revision: ClassVar[None] = None
    stored_bytes: ClassVar[int] = 0
    quantization: ClassVar[None] = None
    may_add_up_in_float16: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """Its class."""
        return type(self.module).__name__

    @property
    def tensor_dtypes(self) -> dict[str, int]:
        """Elements of its parameters by dtype name."""
        elements: dict[str, int] = {}
        for parameter in self.module.parameters():
            dtype = dtype_name(parameter.dtype)
            elements[dtype] = elements.get(dtype, 0) + parameter.numel()
        return elements

    @property
    def declared_dtype(self) -> str:
        """The dtype of most of its parameters.

        Raises:
            UnsupportedModelError: none is floating-point.
        """
        return dtype_name(main_dtype(self.module))

    def models(self, *, device: str, is_resident: bool) -> SharedModels:
        """Its model in every dtype; the weights are in memory already.

        Raises:
            UnsupportedModelError: they are not.
        """
        del is_resident
        self._check_values()
        return LiveModels(self.module, device=device)

    def _check_values(self) -> None:
        named = (*self.module.named_parameters(), *self.module.named_buffers())
        absent = [name for name, tensor in named if tensor.is_meta]
        if absent:
            raise UnsupportedModelError(
                f"{len(absent)} tensors of the module have no values, such as {absent[0]!r} "
                "(expected none on the meta device)",
                hint="load its weights into memory, without offloading, or scan its checkpoint",
            )


Subject = CheckpointSubject | LiveSubject
