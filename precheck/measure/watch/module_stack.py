"""Which module is running: names on a stack, kept by hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn
    from torch.utils.hooks import RemovableHandle


class Hook:
    """A hook on a user's model: a copy of the model, or what is pickled, is not watched."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Does what it is there for."""
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple[Callable[[], Callable[..., None]], tuple[()]]:
        return _no_hook, ()


def _no_hook() -> Callable[..., None]:
    return _nothing


def _nothing(*_: object, **__: object) -> None:
    """Stands in a copy for a hook."""


class ModuleStack:
    """Names of the modules that are running, innermost last; kept by hooks on every module."""

    def __init__(self, model: nn.Module) -> None:
        self.names: list[str] = [""]
        self._handles: list[RemovableHandle] = []
        for name, module in model.named_modules():
            if name:
                self._attach(name, module)

    def _attach(self, name: str, module: nn.Module) -> None:
        def enter(*_: object) -> None:
            self.names.append(name)

        def leave(*_: object) -> None:
            self.names.pop()

        self._handles.append(module.register_forward_pre_hook(Hook(enter)))
        # always_call: a forward that raises must not leave its name on the stack
        self._handles.append(module.register_forward_hook(Hook(leave), always_call=True))

    def detach(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.names[:] = [""]
