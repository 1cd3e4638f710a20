"""Images and sounds as batches of one probe each, made by the checkpoint's own processor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from precheck.checkpoint.processor import PROCESSOR_FILES, load_processor
from precheck.checkpoint.quiet import quiet_transformers
from precheck.errors import UsageError
from precheck.measure.probes.batch import Batch
from precheck.measure.probes.builtin import SPOKEN
from precheck.measure.probes.chat_template import ChatTemplate
from precheck.measure.probes.media import (
    HELD_OUT_IMAGES,
    IMAGES,
    ODD_MEDIA,
    QUESTION,
    SAMPLING_RATE,
    draw,
    held_out_sounds,
    sounds,
)
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from torch import Tensor

    from precheck.checkpoint.source import Checkpoint
    from precheck.measure.probes.media import ImageProbe
    from precheck.records.prompts import ImagePrompt

_LONGEST = 160
"""Characters of an error that are reported; transformers lists every model it knows."""

PIXELS, SOUND, VIDEOS = "pixel_values", "input_features", "pixel_values_videos"


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
        self._template = ChatTemplate()
        if self.takes_media:
            self._load(checkpoint)

    @property
    def problem(self) -> str:
        """Why there is none; empty if there is one, or none is needed."""
        return self._problem

    @property
    def takes_media(self) -> bool:
        """Whether the model takes images or sounds."""
        return bool({PIXELS, SOUND} & self._accepts)

    @property
    def _other_kinds(self) -> tuple[str, ...]:
        """What it takes besides, and is not given."""
        has_both = {PIXELS, SOUND} <= self._accepts
        has_videos = VIDEOS in self._accepts
        return (*(["sounds"] if has_both else []), *(["videos"] if has_videos else []))

    @property
    def takes_text(self) -> bool:
        """Whether the model runs on token ids alone."""
        return "input_ids" in self._accepts or not self.takes_media

    def builtin(self, *, quick: bool) -> Media:
        """The packaged images or sounds, a batch each; only one of those that become alike.

        A probe that the processor fails on is named in ``not_run``.
        """
        made = self._made(IMAGES, sounds())
        return replace(made, batches=made.batches[: 1 if quick else None])

    def held_out(self) -> Media:
        """Images or sounds that no scan uses: those that a fix is proved by."""
        return self._made(HELD_OUT_IMAGES, held_out_sounds())

    def _made(self, images: Sequence[ImageProbe], sounds: Mapping[str, Any]) -> Media:
        if not self.takes_media:
            return Media()
        kind = "image" if PIXELS in self._accepts else "sound"
        not_run = [f"{other} (precheck has none)" for other in self._other_kinds]
        if self._loaded is None:
            return Media(not_run=(f"{kind} probes ({self._problem})", *not_run))
        batches: list[Batch] = []
        shapes: set[tuple[object, ...]] = set()
        for name, inputs in self._inputs(images, sounds):
            batch = self._batch(name, kind, inputs, not_run)
            if batch is None:
                continue
            # a processor that scales every image to one size makes the three drawn ones alike
            shape = ("blank" in name, *(tuple(tensor.shape) for tensor in batch.media.values()))
            if kind == "image" and shape in shapes:
                continue
            shapes.add(shape)
            batches.append(batch)
        if self._template.problem is not None:  # they stand in front of the text instead
            not_run.append(f"images in a chat ({self._template.problem})")
        return Media(batches=tuple(batches), not_run=tuple(not_run))

    def of_user(self, prompt: ImagePrompt, name: str) -> Batch:
        """The batch of a prompt with images.

        Raises:
            UsageError: an image that cannot be read, or nothing here takes images.
        """
        if not self.takes_images:
            reason = self._problem or "the model takes no images"
            raise UsageError(f"{name} has images, but {reason}", hint="omit the images")
        images = [_read_image(path) for path in prompt.images]
        not_run: list[str] = []
        batch = self._batch(name, "image", lambda: self._image_inputs(images, prompt.text), not_run)
        if batch is None:
            raise UsageError(
                f"{name}: {not_run[0]}", hint="try the images with the processor on its own"
            )
        return batch

    def of_drawing(self, image: Image.Image) -> Batch | None:
        """The batch of the built-in question about an image; None where the processor fails."""
        inputs = partial(self._image_inputs, [image], QUESTION)
        return self._batch("image_drawn", "image", inputs, not_run=[])

    @property
    def takes_images(self) -> bool:
        """Whether it has been loaded, for a model that takes images."""
        return PIXELS in self._accepts and self._loaded is not None

    def _load(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._problem = "a live module has no processor"
        elif checkpoint.gguf is not None or not any(
            (checkpoint.folder / name).is_file() for name in PROCESSOR_FILES
        ):
            self._problem = "the checkpoint has no processor: no preprocessor_config.json"
        else:
            try:
                with quiet_transformers():
                    self._loaded = load_processor(checkpoint)
            except Exception as error:  # noqa: BLE001  a processor may raise anything
                self._problem = f"the processor cannot be loaded: {_error_line(error)}"

    def _inputs(
        self, images: Sequence[ImageProbe], sounds: Mapping[str, Any]
    ) -> Iterator[tuple[str, Callable[[], dict[str, Tensor]]]]:
        """The name of each probe, and a function that makes its model inputs."""
        if PIXELS in self._accepts:
            for probe in images:
                yield probe.name, partial(self._drawn_inputs, probe)
        else:
            for name, sound in sounds.items():
                yield name, partial(self._sound_inputs, sound)

    def _batch(
        self, name: str, kind: str, make_inputs: Callable[[], dict[str, Tensor]], not_run: list[str]
    ) -> Batch | None:
        """The batch of a probe; None if the processor fails, which is added to ``not_run``."""
        try:
            with quiet_transformers():
                inputs = make_inputs()
            ids = inputs.pop("input_ids")
            if int(ids.max()) >= self._vocab_size:
                raise ValueError("it gives tokens that the model has no embedding for")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  a processor may raise anything
            not_run.append(f"{name} (the processor fails: {_error_line(error)})")
            return None
        media = {key: tensor for key, tensor in inputs.items() if key in self._accepts}
        if not {PIXELS, SOUND} & set(media):
            not_run.append(f"{name} (the processor returns no {kind} for it)")
            return None
        return Batch(
            probes=(
                Probe(
                    name=name,
                    kind=kind,
                    num_tokens=ids.numel(),
                    is_ordinary=name not in ODD_MEDIA,
                ),
            ),
            input_ids=ids,
            decoder_input_ids=None if "input_ids" in self._accepts else ids,
            media=media,
        )

    def _drawn_inputs(self, probe: ImageProbe) -> dict[str, Tensor]:
        return self._image_inputs([draw(probe)], QUESTION)

    def _image_inputs(self, images: list[Image.Image], question: str) -> dict[str, Tensor]:
        """Model inputs of images and a question about them."""
        text = self._text_with_images(len(images), question)
        return _tensors(self._loaded(text=[text], images=[images], return_tensors="pt"))

    def _text_with_images(self, num_images: int, question: str) -> str:
        """The text with a token for each image: by the chat template, else in front of it."""
        parts = [
            *({"type": "image"} for _ in range(num_images)),
            {"type": "text", "text": question},
        ]
        template = getattr(self._loaded, "chat_template", None) or getattr(
            self._loaded.tokenizer, "chat_template", None
        )
        image_token = _image_token(self._loaded)
        if template:
            text = self._template.render(
                self._loaded, [{"role": "user", "content": parts}], chat_template=template
            )
            if text is not None and image_token in text:
                return text
        return f"{image_token * num_images}\n{question}"

    def _sound_inputs(self, sound: Any) -> dict[str, Tensor]:
        """Model inputs of a sound: with a text, or with the beginning of its transcript."""
        if "input_ids" in self._accepts:
            audio_token = getattr(self._loaded, "audio_token", "")
            inputs = self._loaded(
                text=[f"{audio_token}\n{SPOKEN}"],
                audio=[sound],
                sampling_rate=SAMPLING_RATE,
                return_tensors="pt",
            )
            return _tensors(inputs)
        features = self._loaded.feature_extractor(
            sound, sampling_rate=SAMPLING_RATE, return_tensors="pt"
        )
        ids = self._loaded.tokenizer(SPOKEN)["input_ids"]
        return {**_tensors(features), "input_ids": torch.tensor([ids[:-1]])}


def _image_token(processor: Any) -> str:
    """The token that stands for an image in a text."""
    for owner in (processor, processor.tokenizer):
        # Gemma 3 has a token for the place, and another for what fills it
        for name in ("boi_token", "image_token"):
            token = getattr(owner, name, None)
            if token:
                return str(token)
    raise ValueError("it has no image token")


def _tensors(processed: Any) -> dict[str, Tensor]:
    """The tensors that a processor returned, without the mask of a single row."""
    tensors = {key: value for key, value in processed.items() if isinstance(value, torch.Tensor)}
    mask = tensors.get("attention_mask")
    if mask is not None and mask.shape == tensors.get("input_ids", mask).shape:
        del tensors["attention_mask"]  # one row has no padding
    return tensors


def _read_image(path: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(
            f"cannot read image: {path!r}: {_error_line(error)}", hint="pass a PNG or JPEG file"
        ) from error


def _error_line(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:_LONGEST]}" if lines else type(error).__name__
