"""Images of many sizes, contrasts and grains, as inputs of a model that takes images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from precheck.measure.probes.media import ImageProbe, draw
from precheck.records.outcomes.hunt import Pattern

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from precheck.measure.probes.batch import Batch
    from precheck.measure.probes.media_batches import Processor
    from precheck.records.outcomes.hunt import Picture

_HALF = 127.5
"""Of the range of a pixel."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PictureSpace:
    """The images that a model can be given, and how they become its inputs.

    Args:
        processor: the checkpoint's.
        most_positions: tokens and patches of an input that memory allows.
    """

    processor: Processor
    most_positions: int

    def batch(self, picture: Picture) -> Batch | None:
        """The model's inputs; None where the processor fails, or they do not fit into memory."""
        batch = self.processor.of_drawing(drawn(picture))
        return None if batch is None or batch.num_positions > self.most_positions else batch


def drawn(picture: Picture) -> Image.Image:
    """The image, RGB, the same on every machine."""
    shape = (picture.height, picture.width, 1)
    pixels = picture.contrast * _pattern(picture) + picture.brightness
    if picture.noise:
        pixels = pixels + picture.noise * np.random.default_rng(picture.seed).normal(size=shape)
    pixels = (pixels + 1.0) * _HALF * np.array(picture.colour)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _pattern(picture: Picture) -> NDArray[np.floating[Any]]:
    """The pattern within -1 and 1, ``(height, width, 3)`` or with fewer that broadcast to it."""
    width, height, half = picture.width, picture.height, max(1, picture.period // 2)
    across, down = np.arange(width) // half % 2, np.arange(height)[:, None] // half % 2
    bright: NDArray[np.floating[Any]]
    match picture.pattern:
        case Pattern.SCENE:
            image = draw(ImageProbe(name="scene", width=width, height=height))
            return np.asarray(image, dtype=np.float64) / _HALF - 1.0
        case Pattern.FLAT:
            bright = np.zeros((height, width, 1))
        case Pattern.STRIPES:
            bright = np.broadcast_to(2.0 * across - 1.0, (height, width))[..., None]
        case Pattern.CHECKS:
            bright = (2.0 * (across ^ down) - 1.0)[..., None]
    return bright
