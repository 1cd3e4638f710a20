"""Products inside one module with inputs as a format stores them: those of experts.

Idea. Experts keep their matrices stacked in parameters of one module, which multiplies with them as
it likes: one by one, in a batch, in a grouped product. Below torch's own functions all of these are
a few operations, of which one operand is a view of the parameter. While the module runs, a dispatch
mode stores the other operand, multiplies it with the same view of the stored matrix in float32, and
rounds the product once. The module sees its own parameters, and its own dtype.

Assumptions. A bias that is added after a product is added to what was rounded, as the module writes
it.

What it cannot see: a product with a copy of a matrix. The run ends there, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from precheck.errors import UnsupportedConfigurationError
from precheck.measure.formats.stored_op import Stored, store

if TYPE_CHECKING:
    from types import TracebackType

    from torch._ops import OpOverload

    from precheck.measure.formats.parts import Parts

_MATRIX_AT = {
    "aten::mm": 1,
    "aten::bmm": 1,
    "aten::addmm": 2,
    "aten::baddbmm": 2,
    "aten::_grouped_mm": 1,
    "transformers::grouped_mm_fallback": 1,
}
"""Of each product, the argument with the matrix; that before it is the input, channels last."""


class StackedMatrix(NamedTuple):
    """The matrices of all experts."""

    name: str
    weight: Tensor
    """What the module has."""
    stored: Tensor
    """The same in float32, as it is read back; with the same strides."""

    def view_like(self, tensor: Tensor) -> Tensor | None:
        """What ``tensor`` is of the weight, of the stored form; None if it is no view of it."""
        if tensor.untyped_storage().data_ptr() != self.weight.untyped_storage().data_ptr():
            return None
        offset = tensor.storage_offset() - self.weight.storage_offset()
        if not 0 <= offset < self.weight.numel():
            return None
        return self.stored.as_strided(tensor.shape, tensor.stride(), offset)


class StoredProducts(TorchDispatchMode):
    """Stores the inputs of products with certain matrices, and multiplies in float32.

    Args:
        matrices: of the module that runs while the mode is on.
        name: of a format that has activations.
        parts: is shown every input.
    """

    def __init__(self, matrices: list[StackedMatrix], name: str, *, parts: Parts | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._matrices = matrices
        self._name = name
        self._parts = parts
        self._multiplied: set[str] = set()
        self._read: dict[str, str] = {}
        """By matrix, another operation that read it."""

    def __torch_dispatch__(
        self, func: OpOverload, _types: object, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.is_view:
            return func(*args, **kwargs)
        at = _MATRIX_AT.get(func._schema.name)  # noqa: SLF001  the public spelling of an op
        for position, argument in enumerate(args):
            if not isinstance(argument, Tensor):
                continue
            for matrix in self._matrices:
                view = matrix.view_like(argument)
                if view is None:
                    continue
                if position == at:
                    self._multiplied.add(matrix.name)
                    return self._product(func, args, kwargs, at=at, matrix=matrix, view=view)
                self._read[matrix.name] = func._schema.name  # noqa: SLF001
        return func(*args, **kwargs)

    def _product(
        self,
        func: OpOverload,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        at: int,
        matrix: StackedMatrix,
        view: Tensor,
    ) -> Tensor:
        before, values, after = args[: at - 1], args[at - 1], args[at + 1 :]
        stored = store(
            matrix.name, values.float(), Stored.ACTIVATIONS, self._name, parts=self._parts
        )
        product: Tensor = func(
            *map(_widened, before), stored, view, *map(_widened, after), **kwargs
        )
        return product.to(values.dtype)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Refuses what the module computed with a copy of a matrix.

        Raises:
            UnsupportedConfigurationError: inputs that are not stored were multiplied with it.
        """
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        unseen = self._read.keys() - self._multiplied
        if error is None and unseen:
            name = min(unseen)
            raise UnsupportedConfigurationError(
                f"{name} is read by {self._read[name]}, not by a product: what it is multiplied "
                "with cannot be stored in a format"
            )


def _widened(argument: Any) -> Any:
    is_float = isinstance(argument, torch.Tensor) and argument.is_floating_point()
    return argument.float() if is_float else argument
