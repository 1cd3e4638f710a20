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
    is_turned: bool = False
    """Upside down, with another grain: what is kept for the proof of a fix."""


IMAGES = (
    ImageProbe(name="image_112x112", width=112, height=112),
    ImageProbe(name="image_448x224", width=448, height=224),
    # 400 visual tokens of 28 x 28 pixels: some towers overflow for many only (vLLM, qwen2_5_vl.py)
    ImageProbe(name="image_560x560", width=560, height=560),
    ImageProbe(name="image_blank", width=224, height=224, is_flat=True),
)
HELD_OUT_IMAGES = (
    ImageProbe(name="held_out_168x140", width=168, height=140, is_turned=True),
    ImageProbe(name="held_out_336x448", width=336, height=448, is_turned=True),
)
ODD_MEDIA = frozenset({"image_blank", "sound_noise", "sound_silence"})
"""What no camera and no speaker makes: it may show a fault, and says little of the precision."""
QUESTION = "Describe this image."


def draw(probe: ImageProbe) -> Image.Image:
    """The image, RGB."""
    width, height = probe.width, probe.height
    if probe.is_flat:
        return Image.new("RGB", (width, height), (255, 255, 255))
    across = np.linspace(40, 200, width)[None, :, None] * np.array([0.7, 0.9, 1.0])
    down = np.linspace(0, 55, height)[:, None, None]
    grain = np.random.default_rng(int(probe.is_turned)).normal(0, _GRAIN, (height, width, 1))
    pixels = np.clip(across + down + grain, 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    pen.ellipse((width * 0.45, height * 0.35, width * 0.85, height * 0.75), fill=(60, 160, 240))
    pen.line((0, height * 0.9, width, height * 0.6), fill=(20, 20, 20), width=3)
    pen.rectangle((0, 0, 41, 41), fill=(255, 0, 0))
    return image.rotate(180) if probe.is_turned else image


def sounds() -> dict[str, NDArray[np.float32]]:
    """Mono sounds at ``SAMPLING_RATE``, ``(samples,)`` float32 within -1 and 1."""
    time = _time()
    voice = _voice(pitch=120, formants=(500, 1500))
    noise = np.random.default_rng(0).normal(0, 0.2, time.shape)
    samples = {"sound_voice": voice, "sound_noise": noise, "sound_silence": np.zeros_like(time)}
    return {name: sound.clip(-1, 1).astype(np.float32) for name, sound in samples.items()}


def held_out_sounds() -> dict[str, NDArray[np.float32]]:
    """Sounds that are kept for the proof of a fix: two other voices."""
    voices = {
        "held_out_voice": _voice(pitch=210, formants=(300, 2200)),
        "held_out_low_voice": _voice(pitch=90, formants=(700, 1100)),
    }
    return {name: sound.astype(np.float32) for name, sound in voices.items()}


def _voice(*, pitch: int, formants: tuple[int, int]) -> NDArray[np.float64]:
    """A vowel: harmonics of a pitch in Hz around two formants, four times a second."""
    time = _time()
    voice: NDArray[np.float64] = np.zeros_like(time)
    for harmonic in range(1, 30):
        for formant in formants:
            size = np.exp(-(((pitch * harmonic - formant) / 200) ** 2))
            voice += np.sin(2 * np.pi * pitch * harmonic * time) * size
    swelling = 0.5 + 0.5 * np.sin(2 * np.pi * 4 * time)
    spoken: NDArray[np.float64] = voice / np.abs(voice).max() * swelling
    return spoken


def _time() -> NDArray[np.float64]:
    time: NDArray[np.float64] = np.arange(int(_SECONDS * SAMPLING_RATE)) / SAMPLING_RATE
    return time
