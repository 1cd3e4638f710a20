"""The parameters of a model that are read from the checkpoint, and what makes each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.torch_dtypes import torch_dtype

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import torch
    from torch import nn

    from precheck.checkpoint.weights import Weights
    from precheck.measure.models.conversion import Conversion
    from precheck.records.precision import Dtype


class StoredParameters:
    """The parameters of a model that have to be read, and the conversion that makes each.

    Args:
        model: what is stored is on ``meta``; its other parameters are in memory and stay there.
        conversions: how stored tensors become parameters.
        stored: the checkpoint's tensors; only headers are read.
    """

    def __init__(
        self, model: nn.Module, conversions: Iterable[Conversion], stored: Weights
    ) -> None:
        self.model = model
        self.dtypes: dict[Dtype, dict[str, torch.dtype]] = {}
        """The dtype of each parameter and buffer, by the dtype its model was loaded in."""
        self._stored = stored
        named = dict(model.named_parameters())
        self._shapes = {
            name: parameter.shape for name, parameter in named.items() if parameter.is_meta
        }
        first = {id(parameter): name for name, parameter in named.items()}
        self.first_names = {
            name: first[id(parameter)]
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.is_meta
        }
        """Every name of a stored parameter, and the first one the model has for it."""
        self.conversion_of: dict[str, Conversion] = {}
        """By first name."""
        self.buffers: dict[str, Conversion] = {}
        """Conversions of stored buffers."""
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        buffers = {name for name, buffer in model.named_buffers() if buffer.is_meta}
        for conversion in conversions:
            for target in conversion.parameter_names(model, stored):
                name = self.first_names.get(target)
                # of two tied parameters that are both stored, transformers keeps the tie's source
                if name is not None and (name not in self.conversion_of or target not in tied):
                    self.conversion_of[name] = conversion
                elif target in buffers:
                    self.buffers[target] = conversion

    def names_in(self, module: str, *, recurse: bool = True) -> tuple[str, ...]:
        """The stored parameters of a module, by their first names."""
        owner = self.model.get_submodule(module)
        prefix = f"{module}." if module else ""
        names = (f"{prefix}{name}" for name, _ in owner.named_parameters(recurse=recurse))
        first_names = (self.first_names[name] for name in names if name in self.first_names)
        return tuple(dict.fromkeys(first_names))

    def dtype_of(self, name: str, dtype: Dtype) -> torch.dtype:
        """What a parameter or buffer is in the model of a dtype; by any of its names."""
        return self.dtypes[dtype][name]

    def is_stored_alone(self, name: str) -> bool:
        """Whether one stored tensor is the parameter, row for row."""
        return self.conversion_of[name].converter is None

    def num_bytes(self, names: Collection[str], dtypes: Iterable[Dtype]) -> int:
        """Bytes of the stored tensors of these parameters, and of their casts to each dtype."""
        conversions = dict.fromkeys(self.conversion_of[name] for name in names)
        sources = {name for conversion in conversions for name in conversion.sources}
        total = sum(self._stored.nbytes(name) for name in sources)
        for dtype in dtypes:
            for name in names:
                target = self.dtype_of(name, dtype)
                num_copies = self._num_copies(self.conversion_of[name], target)
                total += num_copies * self._shapes[name].numel() * target.itemsize
        return total

    def _num_copies(self, conversion: Conversion, target: torch.dtype) -> int:
        if conversion.converter is not None:
            return 2  # tensors that are merged are cast first
        return 0 if torch_dtype(self._stored.dtype(conversion.sources[0])) == target else 1
