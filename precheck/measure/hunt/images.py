"""Images: sizes, contrasts and grains by a sweep, and changes of the best ones.

**Idea.** Towers overflow for many patches, for patches far apart, and for what no photograph holds:
one colour throughout, or noise. A size is tried by an ordinary image, contrast and grain at a size
that costs little, and then the best images of the tightest operations are changed a little.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from precheck.records.outcomes.hunt import Pattern, Picture

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.measure.hunt.trial import Trial

SIDES = (28, 56, 112, 224, 336, 448, 672, 896, 1120, 1344, 1792, 2688)
"""Pixels. Wide and tall images come with all their pairs."""
MOST_PIXELS = 1 << 20
"""Of an image; processors make larger ones smaller, and memory holds few more patches."""
_SMALL = 224
"""Pixels of a side where contrast and grain are tried."""
_COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
_PERIODS = (2, 4, 8, 14, 28, 56)
_NOISES = (0.1, 0.3, 1.0, 3.0)
ROUNDS = 64
"""Of changes; each is one image for each of the tightest operations."""
NUM_AIMS = 6


def images(trial: Trial) -> None:
    """Sizes first, then contrast and grain, then changes of the best; nothing without images."""
    if trial.pictures is None:
        return
    sizes = [size for size in product(SIDES, SIDES) if size[0] * size[1] <= MOST_PIXELS]
    for width, height in sorted(sizes, key=lambda size: size[0] * size[1]):
        trial.run_picture(Picture(width=width, height=height))
    for picture in _grains():
        trial.run_picture(picture)
    generator = trial.generator("images")
    for _ in range(ROUNDS):
        for number in trial.aims(of_images=True)[:NUM_AIMS]:
            kept = trial.archive.images[number]
            if kept:
                parent = kept[_drawn(len(kept), generator)].picture
                if parent is not None:
                    trial.run_picture(changed(parent, generator))


def _grains() -> Iterator[Picture]:
    """Images of one size that differ in all else."""
    plain = Picture(width=_SMALL, height=_SMALL)
    for brightness, colour in product((-1.0, 0.0, 1.0), _COLOURS):
        yield replace(plain, pattern=Pattern.FLAT, brightness=brightness, colour=colour)
    for contrast in (0.1, 0.5, 2.0, 8.0):
        yield replace(plain, contrast=contrast)
    for pattern, period in product((Pattern.STRIPES, Pattern.CHECKS), _PERIODS):
        yield replace(plain, pattern=pattern, period=period)
    for pattern, noise in product((Pattern.SCENE, Pattern.FLAT), _NOISES):
        yield replace(plain, pattern=pattern, noise=noise)


def changed(picture: Picture, generator: torch.Generator) -> Picture:
    """The image with one thing changed, as it is drawn."""
    factor = float(2.0 ** (2.0 * torch.rand((), generator=generator) - 1.0))
    step = float(torch.randn((), generator=generator))
    red, green, blue = torch.rand(3, generator=generator).tolist()
    changes: tuple[dict[str, Any], ...] = (
        {"width": _side(picture.width * factor, picture.height)},
        {"height": _side(picture.height * factor, picture.width)},
        {"contrast": max(picture.contrast, 0.05) * factor},
        {"brightness": max(-1.0, min(1.0, picture.brightness + step))},
        {"noise": max(picture.noise, 0.05) * factor, "seed": _drawn(1 << 30, generator)},
        {
            "pattern": tuple(Pattern)[_drawn(len(Pattern), generator)],
            "period": _PERIODS[_drawn(len(_PERIODS), generator)],
        },
        {"colour": (red, green, blue)},
    )
    return replace(picture, **changes[_drawn(len(changes), generator)])


def _side(pixels: float, other: int) -> int:
    return int(max(SIDES[0], min(SIDES[-1], MOST_PIXELS // other, pixels)))


def _drawn(most: int, generator: torch.Generator) -> int:
    return int(torch.randint(most, (1,), generator=generator))
