"""A batch with synthetic pixels or sounds: the text around them has a place for each feature."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedConfig

from precheck.cure.media.arrays import Draw, arrays
from precheck.errors import UntraceableError
from precheck.measure.models.settings import text_config
from precheck.measure.models.skeleton import Skeleton, twin
from precheck.measure.probes.batch import Batch
from precheck.measure.subject.token_inputs import decoder_start, vocab_size
from precheck.measure.trace.flow import FakeModel
from precheck.measure.watch.trees import tensors_in
from precheck.records.traces import Probe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

_BEFORE, _AFTER = 4, 24
"""Tokens of text around the places."""
_MOST_PLACES = 8192
_MOST_TRIALS = 40
"""Each traces the model once: a second or a few."""
_TYPES = {"image": 1, "video": 2, "sound": 3}
"""What ``mm_token_type_ids`` calls them."""
_PLACE_SETTINGS = ("num_query_tokens", "image_seq_length", "mm_tokens_per_image")
"""Numbers of a config that may be that of an image's features."""
_QUERY = 8
"""Tokens of a second text, for a querying transformer."""


class Synthetic:
    """Makes batches for a model whose processor is not there.

    Args:
        skeleton: the model, its buffers with values and its parameters without.
    """

    def __init__(self, skeleton: Skeleton) -> None:
        self._skeleton = skeleton
        self._config: Any = skeleton.model.config
        self._vocab_size = vocab_size(skeleton.model)

    def batches(self, medium: str, draws: tuple[Draw, ...]) -> tuple[Batch, ...]:
        """A batch for each draw; none if no layout that is known fits the model."""
        found = self._fitting(medium, draws[0])
        if found is None:
            return ()
        number, places, has_mask = found
        layouts = [self._layouts(medium, draw)[number] for draw in draws]
        return tuple(
            self._batch(medium, inputs, places, draw, has_mask=has_mask)
            for inputs, draw in zip(layouts, draws, strict=True)
        )

    def _fitting(self, medium: str, draw: Draw) -> tuple[int, int, bool] | None:
        """The first layout that the model takes, how many places it wants, whether a mask."""
        trials = 0
        for number, inputs in enumerate(self._layouts(medium, draw)):
            tried: set[int] = set()
            for places in self._numbers_of_places(medium, inputs, draw):
                if places in tried or places > _MOST_PLACES:
                    continue
                tried.add(places)
                for has_mask in (False, True):
                    batch = self._batch(medium, inputs, places, draw, has_mask=has_mask)
                    if self._problem(batch) is None:
                        return number, places, has_mask
                    trials += 1
                if trials > _MOST_TRIALS:
                    return None
        return None

    def _layouts(self, medium: str, draw: Draw) -> list[dict[str, Tensor]]:
        """What may fit; nothing where a config says sizes in a way of its own."""
        try:
            return list(arrays(self._config, self._skeleton.accepts, medium=medium, draw=draw))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            return []

    def _numbers_of_places(
        self, medium: str, inputs: dict[str, Tensor], draw: Draw
    ) -> Iterator[int]:
        """What the class says, what its error says, what the config says; none at all."""
        if self._placeholder(medium) is None:
            yield 0
            return
        counted = self._count_features(medium, inputs)
        if counted:
            yield counted
        problems = (
            self._problem(self._batch(medium, inputs, 1, draw, has_mask=has_mask)) or ""
            for has_mask in (False, True)
        )
        width = int(getattr(text_config(self._skeleton.model), "hidden_size", 1) or 1)
        for number in map(int, re.findall(r"\d+", " ".join(problems))):
            yield from (number, number // width) if number >= width else (number,)
        for name in _PLACE_SETTINGS:
            setting = getattr(self._config, name, None)
            if isinstance(setting, int):
                yield setting
        frames = getattr(getattr(self._config, "audio_config", None), "max_source_positions", None)
        if isinstance(frames, int):  # a projector may pool them by two or four
            yield from (frames, frames // 2, frames // 4)
        yield 0

    def _count_features(self, medium: str, inputs: dict[str, Tensor]) -> int | None:
        """Rows of what the class's own method makes of the inputs."""
        model = twin(self._skeleton.model)
        method = getattr(model, f"get_{_word(medium)}_features", None)
        if method is None:
            return None
        cast = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        width = getattr(text_config(model), "hidden_size", None)
        try:
            with FakeModel(model) as fake:
                output = fake.call(lambda: method(**cast))
        except UntraceableError:
            return None
        features = getattr(output, "pooler_output", output)
        rows = [t for t in tensors_in(features) if t.is_floating_point() and t.shape[-1] == width]
        return sum(tensor.numel() // tensor.shape[-1] for tensor in rows) or None

    def _problem(self, batch: Batch) -> str | None:
        """Why the model does not take the batch; None if it does."""
        skeleton = self._skeleton.another()
        try:
            with FakeModel(skeleton.model) as fake:
                fake.call(lambda: skeleton.forward(batch))
        except UntraceableError as error:
            return error.message
        return None

    def _placeholder(self, medium: str) -> int | None:
        kind = _word(medium)
        names = (f"{kind}_token_id", f"{kind}_token_index", f"{kind}_soft_token_id")
        found = (getattr(self._config, name, None) for name in names)
        return next((token for token in found if isinstance(token, int)), None)

    def _batch(
        self,
        medium: str,
        inputs: dict[str, Tensor],
        places: int,
        draw: Draw,
        *,
        has_mask: bool = False,
    ) -> Batch:
        token = self._placeholder(medium)
        before, after = self._text(_BEFORE, draw.seed), self._text(_AFTER, draw.seed + 1)
        ids = torch.tensor([[*before, *([token or 0] * places), *after]])
        is_place = torch.zeros_like(ids)
        is_place[:, _BEFORE : _BEFORE + places] = 1
        takes_ids = "input_ids" in self._skeleton.accepts
        target = ids[:, -_AFTER:]
        if self._skeleton.is_encoder_decoder:
            start = torch.full_like(target[:, :1], decoder_start(self._skeleton.model))
            target = torch.cat([start, target[:, :-1]], dim=1)
        if not takes_ids:
            ids = target
        has_target = "decoder_input_ids" in self._skeleton.accepts
        probe = Probe(
            name=f"synthetic_{medium}_{draw.seed}",
            kind=medium,
            num_tokens=target.numel() if has_target and takes_ids else ids.numel(),
            is_ordinary=False,
        )
        return Batch(
            probes=(probe,),
            input_ids=ids,
            attention_mask=torch.ones_like(ids) if has_mask else None,
            decoder_input_ids=target if has_target else None,
            media={**inputs, **self._about_places(medium, is_place)},
        )

    def _about_places(self, medium: str, is_place: Tensor) -> dict[str, Tensor]:
        """Arguments that say which token belongs to what."""
        num_tokens = is_place.shape[1]
        known = {
            "token_type_ids": is_place,
            "mm_token_type_ids": is_place * _TYPES.get(medium, 1),
            "image_embeds_position_mask": is_place,
            "image_attention_mask": torch.ones(1, num_tokens, 1, dtype=torch.int64),
            "qformer_input_ids": torch.tensor([self._text(_QUERY, 0)]),
            "qformer_attention_mask": torch.ones(1, _QUERY, dtype=torch.int64),
        }
        tiles = getattr(getattr(self._config, "vision_config", None), "max_num_tiles", None)
        if isinstance(tiles, int):
            known["cross_attention_mask"] = torch.ones(1, num_tokens, 1, tiles, dtype=torch.int64)
        return {name: tensor for name, tensor in known.items() if name in self._skeleton.accepts}

    def _text(self, length: int, seed: int) -> list[int]:
        """Random ordinary tokens: none that a config names."""
        special = set(_token_ids(self._config))
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(0, self._vocab_size, (64 * length,), generator=generator).tolist()
        return ([token for token in drawn if token not in special] or [0] * length)[:length]


def _word(medium: str) -> str:
    """What classes and configs of transformers call it."""
    return "audio" if medium == "sound" else medium


def _token_ids(config: PreTrainedConfig) -> Iterator[int]:
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            yield from _token_ids(value)
        elif isinstance(value, int) and name.endswith(("_token_id", "_token_index")):
            yield value
