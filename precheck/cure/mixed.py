"""A 16-bit model with some modules in float32, and the smallest set of modules that will do.

A module that owns parameters gets what it is given cast to their dtype, and hands on what it makes
of it; sums of a float16 and a float32 tensor are float32. So what a float32 module makes stays in
float32 until the next 16-bit module reads it.
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


def owners(model: nn.Module) -> dict[str, int]:
    """Modules that own floating-point parameters themselves, and how many elements those have."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        own = [each for each in module.parameters(recurse=False) if each.is_floating_point()]
        if own:
            found[name] = sum(each.numel() for each in own)
    return found


def keep_in_float32(model: nn.Module, names: Collection[str]) -> list[RemovableHandle]:
    """Casts the modules' own parameters, and what every module is given to its parameters' dtype.

    Args:
        model: loaded in a 16-bit dtype.
        names: modules as ``named_modules()`` spells them.

    Returns:
        The hooks; as long as they are there, the model runs so.

    Raises:
        UsageError: the model has no such module.
    """
    known = owners(model)
    for name in names:
        if name not in known:
            raise UsageError(
                f"no such module with parameters: {name!r}",
                hint="the recipe was made for another model",
            )
    handles: list[RemovableHandle] = []
    for name in known:
        module = model.get_submodule(name)
        for parameter in module.parameters(recurse=False):
            if name in names and parameter.is_floating_point():
                parameter.data = parameter.data.float()
    for name in known:
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
    sizes: dict[str, int], will_do: Callable[[frozenset[str]], bool]
) -> frozenset[str] | None:
    """Modules of which none can be left out, found by leaving out as many as possible at a time.

    The largest are left out first, so that what stays is small; modules of one block together,
    because attention takes queries, keys and values in one dtype. None if not even all will do.

    Args:
        sizes: elements of each module.
        will_do: tries a set of modules.

    **Source**: ddmin, https://doi.org/10.1109/32.988498

    >>> sorted(smallest_set({"a": 9, "b": 1, "c": 5, "d": 2}, {"b", "d"}.issubset))
    ['b', 'd']
    """
    kept = frozenset(sizes)
    if not will_do(kept):
        return None
    before = None
    for depth in (2, 1):
        kept = _reduced(_groups(kept, sizes, depth), will_do)
    while kept != before:  # what was needed beside another may not be without it
        before, kept = kept, _reduced(_groups(kept, sizes, 0), will_do)
    return kept


def _groups(modules: Collection[str], sizes: dict[str, int], depth: int) -> list[frozenset[str]]:
    """Modules below one that is so many levels up, the largest group first; alone for depth 0."""
    found: dict[str, set[str]] = {}
    for each in modules:
        found.setdefault(each.rsplit(".", depth)[0] if depth else each, set()).add(each)
    ordered = sorted(found.items(), key=lambda item: (-sum(sizes[e] for e in item[1]), item[0]))
    return [frozenset(each) for _, each in ordered]


def _reduced(
    groups: list[frozenset[str]], will_do: Callable[[frozenset[str]], bool]
) -> frozenset[str]:
    """What stays when groups are left out: half of them at once, then a quarter, then each."""
    step = len(groups)
    while step:
        start = 0
        while start < len(groups):
            rest = groups[:start] + groups[start + step :]
            if will_do(frozenset().union(*rest)):
                groups = rest
            else:
                start += step
        step //= 2
    return frozenset().union(*groups)
