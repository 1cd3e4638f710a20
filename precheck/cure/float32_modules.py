"""A 16-bit model with some modules in float32, and the smallest set of modules that is enough.

The inputs of a module that owns parameters are cast to the parameters' dtype; its outputs are left
as they are. The sum of a float16 and a float32 tensor is float32. So the output of a float32 module
stays in float32 until the next 16-bit module reads it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from precheck.errors import UsageError
from precheck.measure.watch.trees import mapped

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    import torch
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


def module_sizes(model: nn.Module) -> dict[str, int]:
    """Number of floating-point elements of each module that owns parameters itself."""
    sizes: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [p for p in module.parameters(recurse=False) if p.is_floating_point()]
        if own:
            sizes[name] = sum(parameter.numel() for parameter in own)
    return sizes


def keep_in_float32(model: nn.Module, names: Collection[str]) -> list[RemovableHandle]:
    """Casts the parameters of some modules to float32, and every module's inputs to its dtype.

    Args:
        model: loaded in a 16-bit dtype.
        names: modules as ``named_modules()`` spells them.

    Returns:
        The hooks that cast inputs; the model needs them while its parameters have two dtypes.

    Raises:
        UsageError: the model has no such module.
    """
    owners = module_sizes(model)
    for name in names:
        if name not in owners:
            raise UsageError(
                f"no such module with parameters: {name!r}",
                hint="the recipe was made for another model",
            )
    handles: list[RemovableHandle] = []
    for name in owners:
        module = model.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            if name in names and parameter.is_floating_point():
                parameter.data = parameter.data.float()
    # after all casts: a tied parameter has two modules
    for name in owners:
        module = model.get_submodule(name)
        dtype = next(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())
        handles.append(module.register_forward_pre_hook(_casting(dtype), with_kwargs=True))
    return handles


def _casting(dtype: torch.dtype) -> Callable[..., Any]:
    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return mapped(args, cast), mapped(kwargs, cast)

    return before


def smallest_set(
    sizes: dict[str, int], is_enough: Callable[[frozenset[str]], bool]
) -> frozenset[str] | None:
    """Modules of which none can be left out, found by leaving out as many as possible at a time.

    The largest are left out first, so that the rest is small. Modules of one block are left out
    together first, because attention needs queries, keys and values in one dtype. None if not even
    all modules are enough.

    Args:
        sizes: elements of each module.
        is_enough: tries a set of modules.

    **Source**: ddmin, https://doi.org/10.1109/32.988498

    >>> sorted(smallest_set({"a": 9, "b": 1, "c": 5, "d": 2}, {"b", "d"}.issubset))
    ['b', 'd']
    """
    kept = frozenset(sizes)
    if not is_enough(kept):
        return None
    before = None
    for depth in (2, 1):
        kept = _without_groups(_groups(kept, sizes, depth), is_enough)
    while kept != before:  # a module may be needed only as long as another one is there
        before, kept = kept, _without_groups(_groups(kept, sizes, 0), is_enough)
    return kept


def _groups(modules: Collection[str], sizes: dict[str, int], depth: int) -> list[frozenset[str]]:
    """Modules grouped by their ancestor ``depth`` levels up, the largest group first.

    With depth 0 each module is a group.
    """
    groups: dict[str, set[str]] = {}
    for name in modules:
        groups.setdefault(name.rsplit(".", depth)[0] if depth else name, set()).add(name)
    ordered = sorted(
        groups.items(), key=lambda item: (-sum(sizes[name] for name in item[1]), item[0])
    )
    return [frozenset(names) for _, names in ordered]


def _without_groups(
    groups: list[frozenset[str]], is_enough: Callable[[frozenset[str]], bool]
) -> frozenset[str]:
    """The modules left when groups are left out: all at once, then half, a quarter, one by one."""
    step = len(groups)
    while step:
        start = 0
        while start < len(groups):
            rest = groups[:start] + groups[start + step :]
            if is_enough(frozenset().union(*rest)):
                groups = rest
            else:
                start += step
        step //= 2
    return frozenset().union(*groups)
