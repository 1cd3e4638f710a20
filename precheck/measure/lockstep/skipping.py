"""Skips the blocks that follow one whose output is NaN everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from precheck.checkpoint.architecture import Architecture, Unit
    from precheck.measure.blame.unit_call import UnitCall


class SkippedBlocks:
    """Blocks of one model whose forward is replaced by one that costs nothing.

    Args:
        model: the run's model.
        layout: its units.
    """

    def __init__(self, model: nn.Module, layout: Architecture) -> None:
        self.after: str | None = None
        """The block that they follow; None while nothing is skipped."""
        self._model = model
        self._layout = layout
        self._units: set[Unit] = set()

    def __contains__(self, unit: Unit) -> bool:
        return unit in self._units

    def skip_if_all_nan(self, call: UnitCall) -> None:
        """Where a block returned NaN everywhere, makes those that follow in its list return it too.

        The head is still computed, so that the logits and the symptom are the real ones.
        """
        hidden = call.hidden_states
        if self._units or not call.unit.is_block or hidden is None:
            return
        if not bool(hidden.isnan().all()):
            return
        for unit in self._layout.blocks_after(call.unit):
            self._model.get_submodule(unit.name).forward = _returning(call.output)
            self._units.add(unit)
            self.after = call.unit.name

    def restore(self) -> None:
        """Gives all blocks their own forward back."""
        for unit in self._units:
            del self._model.get_submodule(unit.name).__dict__["forward"]
        self._units.clear()


def _returning(output: Any) -> Callable[..., Any]:
    """A forward that returns the output of another block."""

    def forward(*_args: Any, **_kwargs: Any) -> Any:
        return output

    return forward
