"""The repeated blocks of a model: its decoder layers, found by structure, and its units.

A *block list* is an outermost ``nn.ModuleList`` (or ``nn.Sequential``) whose members are alike in
kind: they have children and parameters of their own. Its members are the decoder layers. A *unit*
is a block, or a maximal module that contains no block: embedding, norm, head, projector. Together
the units cover every parameter once, in whatever order ``forward`` calls them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from precheck.errors import UnsupportedModelError
from precheck.records.traces import TOWERS, Section

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_TOWERS = {
    "pixel_values": Section.VISION,
    "input_features": Section.AUDIO,
    "input_values": Section.AUDIO,
}
_TOWER_SETTINGS = {"patch_size": Section.VISION, "num_mel_bins": Section.AUDIO}
"""Settings that only the config of a tower has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A module that runs as a whole, by its name in ``named_modules()``."""

    name: str
    section: Section
    is_block: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The units of a model and the list its decoder layers live in."""

    units: tuple[Unit, ...]
    decoder_layers: str
    num_decoder_layers: int

    @property
    def blocks(self) -> tuple[Unit, ...]:
        """The units that are decoder layers (of any section)."""
        return tuple(unit for unit in self.units if unit.is_block)

    def blocks_after(self, unit: Unit) -> tuple[Unit, ...]:
        """The blocks after this one in its own list."""
        stack = unit.name.rpartition(".")[0]
        siblings = [block for block in self.blocks if block.name.rpartition(".")[0] == stack]
        return tuple(siblings[siblings.index(unit) + 1 :])

    @property
    def is_causal(self) -> bool:
        """Whether the main stack is a decoder: a position predicts the token after it."""
        return any(
            unit.section is Section.DECODER and unit.name.startswith(f"{self.decoder_layers}.")
            for unit in self.blocks
        )

    def section_of(self, module: str) -> Section:
        """The section a module belongs to; outside the stacks it is the head."""
        for unit in self.units:
            if module == unit.name or module.startswith(f"{unit.name}."):
                return unit.section
        return _nearest(module, {unit.name: unit.section for unit in self.blocks})


def find_architecture(model: nn.Module) -> Architecture:
    """The units of ``model``.

    Raises:
        UnsupportedModelError: there is no repeated block.
    """
    lists = dict(_block_lists(model, ""))
    if not lists:
        raise UnsupportedModelError(
            f"no decoder layers found in {type(model).__name__} (expected a repeated block)",
            hint="precheck scans models whose layers are in one nn.ModuleList",
        )
    units = tuple(_units(model, lists))
    main = _main_list(model, lists)
    num_layers = len(lists[main]._modules)  # noqa: SLF001  children() yields a shared layer once
    return Architecture(units=units, decoder_layers=main, num_decoder_layers=num_layers)


def token_embedding(model: nn.Module) -> nn.Module | None:
    """The embedding that the model declares for its token ids; None if it declares none.

    Code that comes with a checkpoint often does not.
    """
    try:
        embedding: nn.Module | None = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):  # no transformers model, or one of two towers
        return None
    return embedding


def _block_lists(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in module.named_children():
        full = f"{name}.{child_name}" if name else child_name
        if _is_block_list(child):
            yield full, child
        else:
            yield from _block_lists(child, full)


def _is_block_list(module: nn.Module) -> bool:
    if not isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    members = list(module.children())
    if not members:
        return False
    is_alike = isinstance(module, nn.ModuleList) or len({type(member) for member in members}) == 1
    return is_alike and all(_is_block(member) for member in members)


def _is_block(module: nn.Module) -> bool:
    matrices = sum(parameter.dim() > 1 for parameter in module.parameters())
    return any(True for _ in module.children()) and matrices > 1


def _units(model: nn.Module, lists: dict[str, nn.Module]) -> Iterator[Unit]:
    sections = {f"{name}.0": _section(model, name) for name in lists}
    blocks = [block for block_list in lists.values() for block in block_list.children()]
    within = {id(part) for block in blocks for part in block.modules()} - set(map(id, blocks))
    seen: set[int] = set()
    before_blocks = True
    blocks_seen: set[str] = set()
    for name, module in _candidates(model, "", lists):
        # a shared module keeps its first name, as named_modules() has it; units do not nest
        if id(module) in seen | within:
            continue
        seen.add(id(module))
        is_block = name.rsplit(".", 1)[0] in lists
        before_blocks = before_blocks and not is_block
        section = _nearest(name, sections)
        if not is_block and _is_projector(name, module, sections, blocks_seen):
            section = Section.PROJECTOR
        elif before_blocks and section is Section.HEAD:
            section = next(iter(sections.values()))
        if is_block:
            blocks_seen.add(name.rpartition(".")[0])
        yield Unit(name=name, section=section, is_block=is_block)


def _is_projector(
    name: str, module: nn.Module, blocks: dict[str, Section], lists_before: Collection[str]
) -> bool:
    """Whether a module projects a tower's output to hidden states of the decoder.

    It has matrices and comes after the layers of a tower and before those of the decoder: inside
    the tower's own module (a merger), or next to it.
    """
    towers = {block.rpartition(".")[0] for block, section in blocks.items() if section in TOWERS}
    others = {block.rpartition(".")[0] for block in blocks} - towers
    if not others or not towers & set(lists_before) or others & set(lists_before):
        return False
    is_of_others = any(name.startswith(f"{_stem(stack, towers)}.") for stack in others)
    return not is_of_others and any(parameter.dim() > 1 for parameter in module.parameters())


def _stem(block_list: str, others: Collection[str]) -> str:
    """The outermost module that holds a stack and none of the others."""
    parts = block_list.split(".")
    for depth in range(1, len(parts)):
        stem = ".".join(parts[:depth])
        if not any(other.startswith(f"{stem}.") for other in others):
            return stem
    return block_list


def _candidates(
    module: nn.Module, path: str, lists: dict[str, nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """Modules that may be units, a shared one by each of its names."""
    for child_name, child in module.named_children():
        full = f"{path}.{child_name}" if path else child_name
        if full in lists:
            yield from ((f"{full}.{index}", block) for index, block in child.named_children())
        elif any(name.startswith(f"{full}.") for name in lists) or not _is_callable(child):
            yield from _candidates(child, full, lists)
        else:
            yield full, child


def _is_callable(module: nn.Module) -> bool:
    """Whether it has a forward; lists of modules or parameters have none."""
    return any("forward" in base.__dict__ for base in type(module).__mro__ if base is not nn.Module)


def _nearest(module: str, blocks: dict[str, Section]) -> Section:
    """The section of the stack that shares the longest path with ``module``, else the head."""
    path = module.split(".") if module else []
    longest, nearest = 0, Section.HEAD
    for block, section in blocks.items():
        num_shared = 0
        for part, block_part in zip(path, block.split("."), strict=False):
            if part != block_part:
                break
            num_shared += 1
        if num_shared > longest:
            longest, nearest = num_shared, section
    return nearest


def _section(model: nn.Module, block_list: str) -> Section:
    """What a stack is, by the main input of its enclosing model and whether attention is causal."""
    parts = block_list.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        holder = model.get_submodule(".".join(parts[:depth]))
        main_input = getattr(holder, "main_input_name", None)
        if main_input in _TOWERS:
            return _TOWERS[main_input]
        if main_input is not None:  # the innermost model that the stack belongs to decides
            own_config = getattr(holder, "config", None)
            is_part = own_config is not getattr(model, "config", None)
            tower = next(
                (section for name, section in _TOWER_SETTINGS.items() if hasattr(own_config, name)),
                # without a vocabulary it takes sounds or images, and those of images have patches
                None if hasattr(own_config, "vocab_size") else Section.AUDIO,
            )
            if is_part and tower is not None:
                return tower
            break
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return Section.ENCODER if _is_within(model, block_list, "get_encoder") else Section.DECODER
    stack = model.get_submodule(block_list)
    causal = [module.is_causal for module in stack.modules() if hasattr(module, "is_causal")]
    return Section.ENCODER if causal and not any(causal) else Section.DECODER


def _is_within(model: nn.Module, name: str, getter: str) -> bool:
    part: Any = getattr(model, getter, lambda: None)()
    stack = model.get_submodule(name)
    return isinstance(part, nn.Module) and any(module is stack for module in part.modules())


def _main_list(model: nn.Module, lists: dict[str, nn.Module]) -> str:
    """The decoder's list where there is one, else the largest."""

    def weight(name: str) -> tuple[bool, int]:
        size = sum(parameter.numel() for parameter in lists[name].parameters())
        return _section(model, name) is Section.DECODER, size

    return max(lists, key=weight)
