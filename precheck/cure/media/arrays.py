"""Synthetic pixels and sounds of the shapes that a model takes, where no processor makes them.

No table of architectures: sizes come from the configs of its parts, and there are few layouts. Each
is tried on the model without weights, and the first that it takes is used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch import Tensor

_GRID = 8
"""Patches of an image in each direction, where the config does not fix its size."""
_TILES = 10
"""Tiles of a large image; a model that takes fewer leaves the rest."""
_FRAMES = 8
"""Sound frames, where the config does not fix their number: 8 patches of 16."""
_SAMPLES = 16_000
_SIZES = ("patch_size", "image_size", "patch_embed_hidden_size")
"""A config that has one of these is that of an image tower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """How synthetic numbers are drawn."""

    seed: int
    contrast: float = 1.0
    """Standard deviation; processors bring pixels and spectrograms near 1."""

    def normal(self, *shape: int) -> Tensor:
        """A smooth field with some grain, as images and spectrograms are."""
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(shape, generator=generator)
        waves = torch.linspace(-1.0, 1.0, shape[-1]) * math.pi * (1 + self.seed % 3)
        return self.contrast * (0.5 * noise + waves.sin())


def arrays(
    config: PreTrainedConfig, accepts: Collection[str], *, medium: str, draw: Draw
) -> Iterator[dict[str, Tensor]]:
    """Inputs that the model may take for the medium, the likeliest first.

    Args:
        config: the model's.
        accepts: names of its forward's arguments.
        medium: ``image``, ``video`` or ``sound``.
        draw: the numbers.
    """
    parts = list(_parts(config))
    if medium == "sound":
        yield from _sounds(parts, accepts, draw)
    elif medium in {"image", "video"}:
        for part in parts:
            if any(hasattr(part, name) for name in _SIZES):
                yield from _pictures(part, parts, accepts, medium, draw)


def _pictures(
    part: Any, parts: list[Any], accepts: Collection[str], medium: str, draw: Draw
) -> Iterator[dict[str, Tensor]]:
    channels = _first((part,), "num_channels", "in_channels", "in_chans") or 3
    patch = _pair(getattr(part, "patch_size", None) or 16)
    merge = _first((part,), "spatial_merge_size") or _first(parts, "downsample_factor") or 1
    given = _first((part,), "image_size", "img_size")
    size = _pair(given) if given else (patch[0] * _GRID * merge, patch[1] * _GRID * merge)
    name = _argument(accepts, medium)
    if name is None:
        return
    height, width = _GRID * merge, _GRID * merge
    num_patches, numbers = height * width, channels * patch[0] * patch[1]
    frames = _first((part,), "temporal_patch_size") or 1
    grid = next((each for each in accepts if each.startswith(medium) and "grid" in each), None)
    if grid is not None:
        yield {
            name: draw.normal(num_patches, numbers * frames),
            grid: torch.tensor([[1, height, width]]),
        }
    if name == "flattened_patches":
        rows = torch.arange(num_patches)
        places = torch.stack([rows // width + 1, rows % width + 1], dim=1).float()
        numbers = getattr(part, "patch_embed_hidden_size", numbers)
        yield {name: torch.cat([places, draw.normal(num_patches, numbers)], dim=1)[None]}
        return
    tiles = _num_tiles(parts, size)
    for lead in ((1,), (1, 1), (1, tiles), (tiles,), (1, 1, _tiles(part)), (1, frames)):
        if medium == "video" and len(lead) == 1:
            continue
        pixels = draw.normal(*lead, channels, *size)
        about = _about_tiles(accepts, lead)
        yield {name: pixels, **about}
        if "image_sizes" in accepts:
            yield {name: pixels, "image_sizes": torch.tensor([list(size)]), **about}
    yield from _rows_of_patches(
        name, accepts, (height, width), draw.normal(1, num_patches, numbers)
    )


def _num_tiles(parts: list[Any], size: tuple[int, int]) -> int:
    """Tiles of the largest image that the config allows, and one of the whole."""
    grids: Any = _first(parts, "image_grid_pinpoints") or [(0, 0)]
    return max(_TILES, *(1 + (int(h) * int(w)) // (size[0] * size[1]) for h, w in grids))


def _about_tiles(accepts: Collection[str], lead: tuple[int, ...]) -> dict[str, Tensor]:
    """The shape of an image that is cut into tiles."""
    about: dict[str, Tensor] = {}
    if "aspect_ratio_ids" in accepts and len(lead) == 3:  # noqa: PLR2004  batch, images, tiles
        about["aspect_ratio_ids"] = torch.ones(lead[:2], dtype=torch.int64)
        about["aspect_ratio_mask"] = torch.ones(lead, dtype=torch.int64)
    return about


def _rows_of_patches(
    name: str, accepts: Collection[str], grid: tuple[int, int], patches: Tensor
) -> Iterator[dict[str, Tensor]]:
    """An image as a row of its patches, with their places."""
    height, width = grid
    rows = torch.arange(height * width)
    places = torch.stack([rows % width, rows // width], dim=1)[None]
    if "image_position_ids" in accepts:
        yield {name: patches, "image_position_ids": places}
    if "spatial_shapes" in accepts:
        yield {
            name: patches,
            "spatial_shapes": torch.tensor([[height, width]]),
            "pixel_attention_mask": torch.ones(1, height * width, dtype=torch.int64),
        }


def _sounds(parts: list[Any], accepts: Collection[str], draw: Draw) -> Iterator[dict[str, Tensor]]:
    name = _argument(accepts, "sound")
    if name is None:
        return
    if "values" in name:
        yield {name: draw.normal(1, _SAMPLES)}
        return
    width = _first(
        parts,
        "num_mel_bins",
        "input_feat_per_channel",
        "input_feat_size",
        "input_dim",
        "feature_size",
    )
    if width is None:
        return
    positions = _first(parts, "max_source_positions")
    long = 2 * positions if positions else 16 * _FRAMES
    for shape in ((1, width, long), (1, 16 * _FRAMES, width)):
        num_frames = long if shape[1] == width else 16 * _FRAMES
        about = {
            mask: torch.ones(1, num_frames, dtype=kind)
            for mask, kind in (
                ("feature_attention_mask", torch.int64),
                ("input_features_mask", torch.bool),
            )
            if mask in accepts
        }
        yield {name: draw.normal(*shape), **about}


def _argument(accepts: Collection[str], medium: str) -> str | None:
    """The argument that takes what a processor makes of the medium."""
    names = {
        "image": ("pixel_values", "image_pixel_values", "pixel_values_images", "flattened_patches"),
        "video": ("pixel_values_videos",),
        "sound": ("input_features", "audio_input_features", "input_values"),
    }
    return next((name for name in names[medium] if name in accepts), None)


def _parts(config: PreTrainedConfig) -> Iterator[Any]:
    """The configs inside a config, the innermost first: a tower's says more than the whole."""
    for value in list(vars(config).values()):
        if isinstance(value, PreTrainedConfig):
            yield from _parts(value)
    yield config


def _first(parts: Collection[Any], *names: str) -> int | Any | None:
    found = (getattr(part, name, None) for part in parts for name in names)
    return next((value for value in found if value), None)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, dict):
        return int(value["height"]), int(value["width"])
    if isinstance(value, int):
        return value, value
    return int(value[0]), int(value[-1])


def _tiles(part: Any) -> int:
    return int(getattr(part, "max_num_tiles", 1) or 1)
