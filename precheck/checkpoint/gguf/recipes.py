"""Which tensors of a GGUF file make which parameter: transformers' own names and conversions.

llama.cpp renames tensors, and changes the values of some: it interleaves the halves of a head that
RoPE rotates, adds one to Gemma's norms, stacks experts. transformers undoes that while it loads a
whole file; here its tables are applied tensor by tensor. The one place that reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from precheck.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from precheck.checkpoint.gguf.header import GgufHeader, StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a parameter is made."""

    sources: tuple[StoredTensor, ...]
    shape: tuple[int, ...]
    """Of the result."""
    make: Callable[[Sequence[Tensor]], Tensor] | None = None
    """From the decoded sources, float32 on the CPU; None: the only source is the parameter."""


def find_recipes(
    header: GgufHeader, model: nn.Module, settings: Mapping[str, Any]
) -> dict[str, Recipe]:
    """The recipe of every parameter that the file holds, by the model's name for it.

    Tensors of the file that transformers does not load are left out.

    Args:
        header: of the file.
        model: what its metadata describe, without memory.
        settings: the config that transformers made of them, as plain values.

    Raises:
        UnsupportedModelError: parameters that transformers finds in no file of this architecture.
    """
    processor_class: Any = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)
    processor = processor_class(config=dict(settings))
    names: dict[str, str] = get_gguf_hf_weights_map(model, processor)
    _check_found(header, model, names)
    return dict(_processed(header, processor, names))


def _check_found(header: GgufHeader, model: nn.Module, names: Mapping[str, str]) -> None:
    """Checks that every parameter has a name in such files; transformers leaves others random."""
    tied = getattr(model, "all_tied_weights_keys", ())
    known = {*names.values(), *tied}
    unknown = [name for name, _ in model.named_parameters() if name not in known]
    if unknown:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} does not read {len(unknown)} parameters of "
            f"{header.architecture} from GGUF files: {unknown[0]!r} would stay random",
            hint="scan the checkpoint it was made from: the folder or Hub id",
        )


def _processed(
    header: GgufHeader, processor: TensorProcessor, names: Mapping[str, str]
) -> Iterator[tuple[str, Recipe]]:
    stacked = getattr(processor, "GGUF_MOE_WEIGHTS_PATTERN", None)
    experts: dict[str, list[StoredTensor]] = {}
    for tensor in header.tensors:
        if stacked is not None and stacked.fullmatch(tensor.name):
            target = names.get(tensor.name.removesuffix(".weight"))
            if target is not None:
                experts.setdefault(target, []).append(tensor)
        elif tensor.name in names:
            yield names[tensor.name], _single(tensor, processor)
    for target, sources in experts.items():
        yield from _experts(target, sources, processor, names)


def _single(tensor: StoredTensor, processor: TensorProcessor) -> Recipe:
    """A parameter that is one tensor of the file, perhaps in another order or shape."""

    def make(decoded: Sequence[Tensor]) -> Tensor:
        result = _process(processor, tensor.name, decoded[0].numpy())
        return torch.from_numpy(np.ascontiguousarray(result))

    # without memory of its own; norms get one subtracted, and a logarithm is of its negative
    probe = np.broadcast_to(np.float32(-1), tensor.shape)
    result = _process(processor, tensor.name, probe)
    if result is probe:
        return Recipe(sources=(tensor,), shape=tensor.shape)
    return Recipe(sources=(tensor,), shape=result.shape, make=make)


def _process(
    processor: TensorProcessor, name: str, weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    parsed: dict[str, dict[str, Any]] = {"tensors": {}}
    result = processor.process(weights=weights, name=name, parsed_parameters=parsed)
    own: NDArray[np.float32] = next(iter(parsed["tensors"].values()), result.weights)
    return own


def _experts(
    target: str,
    sources: list[StoredTensor],
    processor: TensorProcessor,
    names: Mapping[str, str],
) -> Iterator[tuple[str, Recipe]]:
    """The experts of a layer, ``(experts, outputs, inputs)``; gate and up are one parameter."""

    def make(decoded: Sequence[Tensor]) -> Tensor:
        parsed: dict[str, dict[str, Any]] = {"tensors": {}}
        for source, weights in zip(sources, decoded, strict=True):
            processor.process(
                weights=weights.numpy(),
                name=source.name,
                tensor_key_mapping=names,
                parsed_parameters=parsed,
            )
        made: Tensor = parsed["tensors"][target]
        return made

    num_experts, num_outputs, num_inputs = sources[0].shape
    num_sources = sum(name == target for name in names.values())
    # transformers would leave zeros in the place of one that is missing
    if len(sources) == num_sources and len({source.shape for source in sources}) == 1:
        shape = (num_experts, num_sources * num_outputs, num_inputs)
        yield target, Recipe(sources=tuple(sources), shape=shape, make=make)
