"""Which module is running: names on a stack, kept by hooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle


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

        self._handles.append(module.register_forward_pre_hook(enter))
        # always_call: a forward that raises must not leave its name on the stack
        self._handles.append(module.register_forward_hook(leave, always_call=True))

    def detach(self) -> None:
        """Removes every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.names[:] = [""]
