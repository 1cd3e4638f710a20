"""Finds the modules that have to stay in float32, by running the model with fewer and fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.checkpoint.quiet import quiet_transformers
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.cure.float32_modules import keep_in_float32, module_sizes, smallest_set
from precheck.measure.blame.unit_call import logits_in
from precheck.measure.lockstep.witness import Compared
from precheck.measure.models.attention import attention_of
from precheck.measure.models.loading import load_model
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.probes.batch import Batch
    from precheck.records.precision import Dtype

ReferenceLogits = tuple["Batch", "Tensor"]
"""A batch and the original's logits for it in float32."""


class MixedModel:
    """A checkpoint loaded in a 16-bit dtype, which can be run with any of its modules in float32.

    Raises:
        CheckpointError: it does not load.
        MemoryExhaustedError: it does not fit into memory.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: Dtype, attn_implementation: str, device: str
    ) -> None:
        with quiet_transformers():
            model, _ = load_model(checkpoint, dtype, attn_implementation=attn_implementation)
        self._model = model.to(device)
        self._skeleton = Skeleton(
            configuration=Configuration(dtype=dtype, attn_implementation=attention_of(self._model)),
            model=self._model,
            requested_attn_implementation=attn_implementation,
            parameters=Parameters.of(self._model),
        )
        self._half_dtype: torch.dtype = torch_dtype(dtype)
        self.sizes = {
            name: size
            for name, size in module_sizes(self._model).items()
            if self._own_dtype(name) == self._half_dtype
        }
        """Number of elements of each module in 16 bits."""

    def compare_logits(
        self, modules: Collection[str], references: Collection[ReferenceLogits]
    ) -> Compared | None:
        """Its logits with these modules in float32; None if the forward raises."""
        handles = keep_in_float32(self._model, modules)
        compared = Compared()
        try:
            for batch, reference in references:
                compared.add(batch, self._logits(batch), reference)
        except (RuntimeError, ValueError, TypeError):  # kernels refuse operands of two dtypes
            return None
        finally:
            for handle in handles:
                handle.remove()
            for name in modules:  # exact: their values were 16-bit numbers
                for parameter in self._model.get_submodule(name).parameters(recurse=False):
                    if parameter.is_floating_point():
                        parameter.data = parameter.data.to(self._half_dtype)
        return compared

    def smallest_float32_set(
        self, references: Collection[ReferenceLogits], *, is_good: Callable[[Compared], bool]
    ) -> frozenset[str] | None:
        """A set of modules in float32 of which none can be left out; None if none is enough."""

        def is_enough(modules: frozenset[str]) -> bool:
            compared = self.compare_logits(modules, references)
            return compared is not None and is_good(compared)

        return smallest_set(self.sizes, is_enough)

    def _own_dtype(self, name: str) -> torch.dtype:
        parameters = self._model.get_submodule(name).parameters(recurse=False)
        return next(p.dtype for p in parameters if p.is_floating_point())

    def _logits(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            output = self._skeleton.forward(batch)
        logits = logits_in(output, self._skeleton.vocab_size)
        if logits is None:
            raise TypeError("the model returns no logits")
        return logits
