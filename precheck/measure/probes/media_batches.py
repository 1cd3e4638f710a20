"""The checkpoint's own processor: what it makes of images and sounds, as batches of one probe."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from precheck.checkpoint.processor import PROCESSOR_FILES, load_processor
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UsageError
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.builtin import SPOKEN
from precheck.measure.probes.media import IMAGES, QUESTION, SAMPLING_RATE, draw, sounds
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Set as AbstractSet

    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.probes.media import ImageProbe
    from precheck.records.prompts import ImagePrompt

_LONGEST = 160
"""Characters of an error that are told; transformers lists every model it knows."""

PIXELS, SOUND = "pixel_values", "input_features"


@dataclass(frozen=True, slots=True, kw_only=True)
class Media:
    """Batches with images or sounds, and what could not be made."""

    batches: tuple[Batch, ...] = ()
    not_run: tuple[str, ...] = ()


class Processor:
    """A checkpoint's processor, if there is one that loads.

    Args:
        checkpoint: where it comes from; None for a live module, which has none.
        accepts: names of the arguments of the model's forward.
        vocab_size: rows of the embedding.
    """

    def __init__(
        self, checkpoint: Checkpoint | None, *, accepts: AbstractSet[str], vocab_size: int
    ) -> None:
        self._accepts = accepts
        self._vocab_size = vocab_size
        self._loaded: Any = None
        self._problem = ""
        if self.takes_media:
            self._load(checkpoint)

    @property
    def takes_media(self) -> bool:
        """Whether the model takes anything beside text."""
        return bool({PIXELS, SOUND} & self._accepts)

    @property
    def takes_text(self) -> bool:
        """Whether the model runs on token ids alone."""
        return "input_ids" in self._accepts or not self.takes_media

    def builtin(self, *, quick: bool) -> Media:
        """The packaged images and sounds, one a batch; fewer where the processor makes all alike.

        A probe that the processor fails on is left out by name.
        """
        if not self.takes_media:
            return Media()
        kind = "image" if PIXELS in self._accepts else "sound"
        if self._loaded is None:
            return Media(not_run=(f"{kind} probes ({self._problem})",))
        found: list[Batch] = []
        not_run: list[str] = []
        shapes: set[tuple[object, ...]] = set()
        for name, make in self._makers():
            batch = self._made(name, kind, make, not_run)
            if batch is None:
                continue
            # a processor that scales every image to one size makes three alike of the drawn ones
            shape = ("blank" in name, *(tuple(each.shape) for each in batch.media.values()))
            if kind == "image" and shape in shapes:
                continue
            shapes.add(shape)
            found.append(batch)
        return Media(batches=tuple(found[: 1 if quick else None]), not_run=tuple(not_run))

    def of_user(self, prompt: ImagePrompt, name: str) -> Batch:
        """The batch of a prompt with images.

        Raises:
            UsageError: an image that cannot be read, or nothing here takes images.
        """
        if PIXELS not in self._accepts or self._loaded is None:
            reason = self._problem or "the model takes no images"
            raise UsageError(f"{name} has images, and {reason}", hint="leave the images out")
        images = [_read_image(path) for path in prompt.images]
        not_run: list[str] = []
        batch = self._made(name, "image", lambda: self._about(images, prompt.text), not_run)
        if batch is None:
            raise UsageError(
                f"{name}: {not_run[0]}", hint="try the images with the processor alone"
            )
        return batch

    def _load(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._problem = "a live module has no processor"
        elif not any((checkpoint.folder / each).is_file() for each in PROCESSOR_FILES):
            self._problem = "the checkpoint has no processor: no preprocessor_config.json"
        else:
            try:
                with quiet_transformers():
                    self._loaded = load_processor(checkpoint)
            except Exception as error:  # noqa: BLE001  a processor may raise anything
                self._problem = f"the processor does not load: {_line(error)}"

    def _makers(self) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
        if PIXELS in self._accepts:
            for probe in IMAGES:
                yield probe.name, partial(self._about_drawn, probe)
        else:
            for name, sound in sounds().items():
                yield name, partial(self._heard, sound)

    def _made(
        self, name: str, kind: str, make: Callable[[], dict[str, Tensor]], not_run: list[str]
    ) -> Batch | None:
        try:
            with quiet_transformers():
                made = make()
            ids = made.pop("input_ids")
            if int(ids.max()) >= self._vocab_size:
                raise ValueError("it makes tokens that the model has no embedding for")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  a processor may raise anything
            not_run.append(f"{name} (the processor fails: {_line(error)})")
            return None
        media = {key: each for key, each in made.items() if key in self._accepts}
        if not {PIXELS, SOUND} & set(media):
            not_run.append(f"{name} (the processor makes no {kind} of it)")
            return None
        return Batch(
            probes=(Probe(name=name, kind=kind, num_tokens=ids.numel()),),
            input_ids=ids,
            decoder_input_ids=None if "input_ids" in self._accepts else ids,
            media=media,
        )

    def _about_drawn(self, probe: ImageProbe) -> dict[str, Tensor]:
        return self._about([draw(probe)], QUESTION)

    def _about(self, images: list[Image.Image], question: str) -> dict[str, Tensor]:
        """Model inputs of images and a question about them."""
        made = self._loaded(
            text=[self._asked(len(images), question)], images=[images], return_tensors="pt"
        )
        return _tensors(made)

    def _asked(self, num_images: int, question: str) -> str:
        """The text with a place for each image: by the chat template, else by the bare token."""
        parts = [
            *({"type": "image"} for _ in range(num_images)),
            {"type": "text", "text": question},
        ]
        template = getattr(self._loaded, "chat_template", None) or getattr(
            self._loaded.tokenizer, "chat_template", None
        )
        place = _image_token(self._loaded)
        if template:
            text: str = self._loaded.apply_chat_template(
                [{"role": "user", "content": parts}],
                chat_template=template,
                tokenize=False,
                add_generation_prompt=True,
            )
            if place in text:
                return text
        return f"{place * num_images}\n{question}"

    def _heard(self, sound: Any) -> dict[str, Tensor]:
        """Model inputs of a sound: with a question, or with the beginning of its transcript."""
        if "input_ids" in self._accepts:
            token = getattr(self._loaded, "audio_token", "")
            made = self._loaded(
                text=[f"{token}\n{SPOKEN}"],
                audio=[sound],
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
            )
            return _tensors(made)
        made = self._loaded.feature_extractor(
            sound, sampling_rate=SAMPLING_RATE, return_tensors="pt"
        )
        ids = self._loaded.tokenizer(SPOKEN)["input_ids"]
        return {**_tensors(made), "input_ids": torch.tensor([ids[:-1]])}


def _image_token(processor: Any) -> str:
    """What stands for an image in a text."""
    for holder in (processor, processor.tokenizer):
        # Gemma 3 has a token for the place, and another for what fills it
        for name in ("boi_token", "image_token"):
            token = getattr(holder, name, None)
            if token:
                return str(token)
    raise ValueError("it has no token for an image")


def _tensors(made: Any) -> dict[str, Tensor]:
    found = {key: each for key, each in made.items() if isinstance(each, torch.Tensor)}
    mask = found.get("attention_mask")
    if mask is not None and mask.shape == found.get("input_ids", mask).shape:
        del found["attention_mask"]  # one row has no padding
    return found


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"cannot read image: {path!r}: {_line(error)}", hint="give a PNG or JPEG file"
        ) from error


def _line(error: BaseException) -> str:
    lines = [each for each in str(error).strip().splitlines() if each.strip()]
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}" if lines else type(error).__name__
