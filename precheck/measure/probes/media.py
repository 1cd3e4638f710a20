"""Synthetic images and sounds: probes of models that take more than text.

They are drawn, not photographed, so that they come with the package and are the same everywhere.
An image has what natural ones have and flat ones lack: a gradient, an edge, fine grain, a saturated
corner. Different sizes give different numbers of visual tokens, and some failures need many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLING_RATE = 16_000
"""Hz; speech models expect it."""
_SECONDS = 2.0
_GRAIN = 12
"""Standard deviation of the noise, of 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageProbe:
    """An image to draw, ``width`` by ``height`` pixels; a flat one is white throughout."""

    name: str
    width: int
    height: int
    is_flat: bool = False


IMAGES = (
    ImageProbe(name="image_112x112", width=112, height=112),
    ImageProbe(name="image_448x224", width=448, height=224),
    # 400 visual tokens of 28 x 28 pixels: some towers overflow for many only (vLLM, qwen2_5_vl.py)
    ImageProbe(name="image_560x560", width=560, height=560),
    ImageProbe(name="image_blank", width=224, height=224, is_flat=True),
)
QUESTION = "Describe this image."


def draw(probe: ImageProbe) -> Image.Image:
    """The image, RGB."""
    width, height = probe.width, probe.height
    if probe.is_flat:
        return Image.new("RGB", (width, height), (255, 255, 255))
    across = np.linspace(40, 200, width)[None, :, None] * np.array([0.7, 0.9, 1.0])
    down = np.linspace(0, 55, height)[:, None, None]
    grain = np.random.default_rng(0).normal(0, _GRAIN, (height, width, 1))
    pixels = np.clip(across + down + grain, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.45, height * 0.35, width * 0.85, height * 0.75), fill=(60, 160, 240))
    pen.line((0, height * 0.9, width, height * 0.6), fill=(20, 20, 20), width=3)
    pen.rectangle((0, 0, 41, 41), fill=(255, 0, 0))
    return image


def sounds() -> dict[str, NDArray[np.float32]]:
    """Mono sounds at ``SAMPLING_RATE``, ``(samples,)`` float32 within -1 and 1."""
    time = np.arange(int(_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    # a vowel: harmonics of 120 Hz around two formants, four times a second
    voice = sum(
        np.sin(2 * np.pi * 120 * harmonic * time)
        * (np.exp(-(((120 * harmonic - formant) / 200) ** 2)))
        for harmonic in range(1, 30)
        for formant in (500, 1500)
    )
    voice = voice / np.abs(voice).max() * (0.5 + 0.5 * np.sin(2 * np.pi * 4 * time))
    noise = np.random.default_rng(0).normal(0, 0.2, time.shape)
    samples = {"sound_voice": voice, "sound_noise": noise, "sound_silence": np.zeros_like(time)}
    return {name: sound.clip(-1, 1).astype(np.float32) for name, sound in samples.items()}
