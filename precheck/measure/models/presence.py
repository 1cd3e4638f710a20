"""Where the parameters of a module come from while it runs."""

from __future__ import annotations

from typing import Any, Protocol


class Presence(Protocol):
    """Makes sure that a model's parameters are in memory while a module runs."""

    waiting_points: tuple[str, ...]
    """Modules inside units at which all runs wait for each other: parameters change there."""

    def enter(
        self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Before a module runs; other arguments to call it with, or None to leave them."""

    def leave(self, module: str, output: Any) -> None:
        """After a module, with what it returned."""


class ResidentPresence:
    """The presence of parameters that stay in memory."""

    waiting_points: tuple[str, ...] = ()

    def enter(self, _module: str, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        """Nothing to do."""

    def leave(self, _module: str, _output: Any) -> None:
        """Nothing to do."""
