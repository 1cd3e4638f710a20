"""The parameters of a model that are in memory: their names, and which of them are faulty."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn


class Parameters:
    """The parameters and buffers of one model, by identity.

    Streaming adds and removes them while the model runs, and those who watch the run read them
    through the same object.

    Args:
        named: tensors by name.
        faulty: ids of those that are not finite although the float32 model's are; of the float32
            model itself, ids of those that are not finite.
    """

    __slots__ = ("_faulty", "names")

    def __init__(
        self, named: Iterable[tuple[str, Tensor]] = (), *, faulty: Iterable[int] = ()
    ) -> None:
        self.names = {id(tensor): name for name, tensor in named}
        """Names by ``id(tensor)``: for the look-up at every operation, where a call costs."""
        self._faulty = set(faulty)

    @classmethod
    def of(cls, model: nn.Module, *, faulty: Iterable[int] = ()) -> Parameters:
        """The parameters and buffers that ``model`` has now."""
        return cls((*model.named_parameters(), *model.named_buffers()), faulty=faulty)

    def of_twin(self, model: nn.Module) -> Parameters:
        """The parameters of a model that shares these; the same ones are faulty."""
        return Parameters.of(model, faulty=self._faulty)

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a tensor; None if it is no parameter of the model, or not any more."""
        return self.names.get(id(tensor))

    def is_faulty(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter whose values are not finite and should be."""
        return id(tensor) in self._faulty

    def add(self, parameter: Tensor, name: str, *, is_faulty: bool) -> None:
        """Records a parameter that was put into the model."""
        self.names[id(parameter)] = name
        if is_faulty:
            self._faulty.add(id(parameter))

    def remove(self, parameter: Tensor) -> None:
        """Forgets a parameter that was taken out of the model; its id may come back."""
        self.names.pop(id(parameter), None)
        self._faulty.discard(id(parameter))
