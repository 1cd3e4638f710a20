"""A configuration's model, ready to run: real modules over weights that may be shared."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.torch_dtypes import torch_dtype
from precheck.errors import UnsupportedConfigurationError
from precheck.facts.formats import cache_format
from precheck.measure.formats.parts import Storing
from precheck.measure.formats.stored_cache import check_used, new_cache, plain_cache
from precheck.measure.models.settings import setting, text_config
from precheck.records.precision import Accumulation, Arithmetic
from precheck.signals import deferred_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from transformers import Cache

    from precheck.measure.probes.batch import Batch
    from precheck.measure.watch.parameters import Parameters
    from precheck.records.configuration import Configuration
    from precheck.records.precision import Dtype


_NOT_CAUSAL = frozenset({"fsmt"})
"""Models whose whole text, run with a cache, attends to later tokens (``make zoo-formats``)."""


@dataclass(slots=True, eq=False, kw_only=True)
class Skeleton:
    """The model of one configuration."""

    model: nn.Module
    configuration: Configuration
    """The attention implementation in it is the one that the model really uses."""
    requested_attn_implementation: str
    parameters: Parameters
    """Those in memory; where weights are streamed, they change while the model runs."""
    arithmetic: Arithmetic = Arithmetic.NATIVE
    storing: Storing = field(default_factory=Storing)
    """Where it has a format: which parts are stored in it."""
    has_other_weights: bool = False
    """Of another checkpoint than those of the runs that it is compared with."""
    accepts: frozenset[str] = field(init=False)
    """Names of the arguments of the model's forward."""

    def __post_init__(self) -> None:
        self.model.eval()
        self.accepts = frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def dtype(self) -> Dtype:
        """The dtype of its weights, except those kept in float32."""
        return self.configuration.dtype

    @property
    def attn_implementation(self) -> str:
        """The implementation really in use."""
        return self.configuration.attn_implementation

    def another(self) -> Skeleton:
        """The same configuration with modules and hooks of its own, over the same parameters."""
        model = twin(self.model)
        return replace(self, model=model, parameters=self.parameters.of_twin(model))

    def with_formats(
        self, configuration: Configuration, *, cache_scales: Mapping[str, float]
    ) -> Skeleton:
        """The same model; it will store what ``configuration`` says in the formats it names.

        Args:
            configuration: names the formats.
            cache_scales: of the checkpoint, by part: ``3.keys``.

        Raises:
            UnsupportedConfigurationError: the model has no key-value cache, or no use for one, or
                the format takes scales that the checkpoint does not store.
        """
        if configuration.kv_cache_dtype is not None:
            if "past_key_values" not in self.accepts:
                raise UnsupportedConfigurationError("the model takes no key-value cache")
            if self._model_type in _NOT_CAUSAL:
                raise UnsupportedConfigurationError(
                    "transformers drops the causal mask of this model where it has a cache"
                )
            if not self.is_encoder_decoder and not _is_decoder(self.model):
                raise UnsupportedConfigurationError(
                    "tokens attend to later ones: a key-value cache is of no use"
                )
        made = replace(
            self.another(),
            configuration=replace(
                self.configuration,
                kv_cache_dtype=configuration.kv_cache_dtype,
                quantization=configuration.quantization,
            ),
            storing=Storing(largest=_calibrated(configuration, cache_scales)),
        )
        made.new_cache(is_kept=False)  # not every model has one
        return made

    def new_cache(self, *, is_kept: bool) -> Cache | None:
        """An empty key-value cache in the configuration's format; None where it has none.

        Args:
            is_kept: for more than one forward.
        """
        name = self.configuration.kv_cache_dtype
        if name is None:
            return None
        return new_cache(self.model.config, name, is_kept=is_kept, storing=self.storing)

    @property
    def can_keep_cache(self) -> bool:
        """Whether a text can be run in parts at all: with keys and values of causal attention."""
        return (
            "past_key_values" in self.accepts
            and not self.is_encoder_decoder
            and self._model_type not in _NOT_CAUSAL
            and _is_decoder(self.model)
        )

    @property
    def _model_type(self) -> str | None:
        return getattr(getattr(self.model, "config", None), "model_type", None)

    def empty_cache(self) -> Cache:
        """A cache to run a text in parts with, in the configuration's format if it has one."""
        return self.new_cache(is_kept=True) or plain_cache(self.model.config)

    def accumulating_in_float16(self) -> Skeleton:
        """The same model; its products will accumulate in float16, as in some kernels."""
        return replace(
            self.another(),
            configuration=replace(self.configuration, accumulation=Accumulation.FLOAT16),
            arithmetic=Arithmetic.FLOAT32_ROUNDED,
        )

    @property
    def experts_implementation(self) -> str | None:
        """How experts are computed (``grouped_mm`` ...); None without experts."""
        config = getattr(self.model, "config", None)
        has_experts = any(
            type(module).__name__.endswith("Experts") for module in self.model.modules()
        )
        return getattr(config, "_experts_implementation", None) if has_experts else None

    @property
    def vocab_size(self) -> int | None:
        """Tokens that the model scores; None if its config does not say."""
        size = setting(text_config(self.model), "vocab_size")
        return size if isinstance(size, int) else None

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether it takes a target besides the input."""
        return bool(getattr(getattr(self.model, "config", None), "is_encoder_decoder", False))

    def forward(self, batch: Batch, *, cache: Cache | None = None) -> Any:
        """The model's own forward over a batch; without a cache, unless that has a format.

        Args:
            batch: the probes.
            cache: what is before them; theirs is added to it.
        """
        inputs = self.inputs(batch)
        cache = cache if cache is not None else self.new_cache(is_kept=False)
        if cache is None:
            return self.model(**inputs)
        output = self.model(**inputs | {"past_key_values": cache, "use_cache": True})
        check_used(cache)
        return output

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """The arguments that the forward is called with."""
        inputs: dict[str, Any] = {}
        if "input_ids" in self.accepts or not batch.media:
            inputs["input_ids"] = batch.input_ids
        dtype = torch_dtype(self.dtype)
        for name, tensor in batch.media.items():  # as ``inputs.to(dtype)`` does, which users write
            inputs[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        if batch.decoder_input_ids is not None:
            inputs["decoder_input_ids"] = batch.decoder_input_ids
        if "use_cache" in self.accepts:
            inputs["use_cache"] = False
        return inputs


def _calibrated(configuration: Configuration, scales: Mapping[str, float]) -> dict[str, float]:
    """By part of the cache, the largest number that its stored scale was made for."""
    name = configuration.kv_cache_dtype
    if name is None or not cache_format(name).takes_stored_scales:
        return {}
    if not scales:
        raise UnsupportedConfigurationError("the checkpoint stores no scales of keys and values")
    largest = cache_format(name).keys.element.max
    return {part: scale * largest for part, scale in scales.items()}


def _is_decoder(model: nn.Module) -> bool:
    """Whether no token attends to later ones, as the config says, else the attention modules."""
    config = getattr(model, "config", None)
    if hasattr(type(config), "is_decoder"):  # BERT and its like are made to be either
        return bool(getattr(config, "is_decoder", False))
    return find_architecture(model).is_causal


def twin(
    model: nn.Module, *, replace: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> nn.Module:
    """A copy of ``model`` with modules, buffers and hooks of its own over the same parameters.

    Args:
        model: it is not changed.
        replace: returns the parameter to use in place of one of the model's; by default the same.
    """
    memo: dict[int, Any] = {id(parameter): replace(parameter) for parameter in model.parameters()}
    with deferred_signals():
        return copy.deepcopy(model, memo)


def nonfinite_parameters(model: nn.Module) -> dict[str, int]:
    """Ids of parameters in memory that have an element that is not finite, by name."""
    return {
        name: id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point()
        and not parameter.is_meta
        and parameter.numel()
        and not bool(torch.stack(torch.aminmax(parameter.detach())).isfinite().all())
    }
