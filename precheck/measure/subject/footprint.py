"""How a model attends and what it takes in memory, without its weights.

The cache is measured, not computed from a formula: the model is built on ``meta`` tensors, which
have shapes and no memory, and its own forward fills its own cache for prompts of a few lengths. So
sliding windows, states of linear attention and compressed keys count as transformers keeps them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from precheck.checkpoint.quiet import quiet_transformers
from precheck.facts import attention
from precheck.measure.models.settings import setting, text_config
from precheck.measure.models.skeleton import twin
from precheck.measure.subject.one_of_each import on_meta, one_of_each
from precheck.records.sizes import AttentionFacts, CacheSize, Widths

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from precheck.checkpoint.architecture import Architecture

_HEAD_DIMS = ("head_dim", "global_head_dim", "qk_head_dim", "d_kv", "kv_channels")
_SHORT, _BEYOND = 8, 64
"""Tokens: a length inside any window, and how far beyond a window to look."""


def attention_facts(model: nn.Module, layout: Architecture) -> AttentionFacts | None:
    """What decides which attention it can use; None if it is no transformers model."""
    if not isinstance(model, PreTrainedModel):
        return None
    text = text_config(model)
    flash = getattr(model, "_compatible_flash_implementations", None)
    num_heads = _number(text, "num_attention_heads")
    head_dim = _head_dim(text, num_heads)
    value_head_dim = _number(text, "v_head_dim")
    return AttentionFacts(
        supported=attention.supported(lambda flag: getattr(model, flag, False)),
        flash_kernels=None if flash is None else tuple(map(str, flash)),
        num_heads=num_heads,
        num_key_value_heads=_number(text, "num_key_value_heads") or num_heads,
        head_dim=head_dim,
        value_head_dim=value_head_dim or head_dim,
        softcap=_softcap(text),
        sliding_window=_window(text),
        has_sinks=any(name.endswith("sinks") for name, _ in model.named_parameters()),
        is_causal=layout.is_causal,
    )


def widths(model: nn.Module) -> Widths | None:
    """What decides the memory of activations; None for a model without matrices."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    matrices = [
        weight
        for module in model.modules()
        if module is not head
        and not isinstance(module, nn.Embedding)
        and isinstance(weight := getattr(module, "weight", None), torch.Tensor)
        and weight.dim() == 2  # noqa: PLR2004  a matrix
    ]
    text = text_config(model)
    inside = [max(matrix.shape) for matrix in matrices] + [
        _number(text, name) or 0 for name in ("intermediate_size", "ffn_dim", "d_ff")
    ]
    narrowest = (min(matrix.shape) for matrix in matrices)
    hidden = _number(text, "hidden_size") or max(narrowest, default=0)
    if not hidden:
        return None
    vocabulary = 0 if head is None else int(head.weight.shape[0])
    return Widths(hidden=hidden, widest=max(inside, default=hidden), vocabulary=vocabulary)


def cache_size(model: nn.Module, layout: Architecture) -> CacheSize | None:
    """Size of the key-value cache of one sequence; None where the model's forward returns none.

    A copy without weights runs; ``model`` itself neither runs nor changes.

    Args:
        model: any.
        layout: its units.
    """
    if not isinstance(model, PreTrainedModel):
        return None
    window = _window(text_config(model)) or 0
    lengths = (_SHORT, _SHORT + 1, *((window + _BEYOND, window + _BEYOND + 1) if window else ()))
    with quiet_transformers(), torch.no_grad(), torch.device("meta"):
        for count in (_count_one_of_each, _count_all):
            try:
                sizes = count(model, layout, lengths)
            except Exception:  # noqa: BLE001, S112  code of any model, on tensors without values
                continue
            break
        else:
            return None
    short, next_one, long, longer = sizes[0], sizes[1], sizes[-2], sizes[-1]
    near_slope, far_slope = next_one - short, longer - long
    if not near_slope and not short:
        return None
    return CacheSize(
        elements_per_token=far_slope,
        windowed_elements_per_token=near_slope - far_slope,
        window=window if near_slope > far_slope else 0,
        fixed_elements=max(0, short - _SHORT * near_slope),
    )


def _ready(model: Any) -> Any:
    """A copy that nobody else uses, made to fill a cache on ``meta``."""
    model.to("meta")
    for part in (model.config, model.config.get_text_config()):
        part.pad_token_id = None  # some models look for it among the ids, which have no values here
        part.use_cache = True
    if hasattr(model, "set_experts_implementation"):
        # the others read which expert each token goes to
        model.set_experts_implementation("batched_mm")
    return model.eval()


def _count_all(model: nn.Module, _layout: Architecture, lengths: Sequence[int]) -> list[int]:
    """Elements in the cache after prompts of these lengths."""
    copied = _ready(twin(model, replace=on_meta))
    return [_num_elements(_cache(copied, length)) for length in lengths]


def _count_one_of_each(model: nn.Module, layout: Architecture, lengths: Sequence[int]) -> list[int]:
    """The same by running one of the layers that are alike, and multiplying what it stores.

    A hundred layers take seconds, without memory too.

    Raises:
        ValueError: the cache is not a list of layers.
    """
    short = one_of_each(model, layout)
    first = {indices[0]: len(indices) for indices in short.members}
    copied = _ready(short.model)
    sizes = []
    for length in lengths:
        cached = getattr(_cache(copied, length), "layers", None)
        if not isinstance(cached, list):
            raise ValueError(f"a cache without layers: {type(cached).__name__}")  # noqa: TRY004
        sizes.append(sum(first.get(i, 1) * _num_elements(each) for i, each in enumerate(cached)))
    return sizes


def _cache(model: Any, length: int) -> Any:
    """What a prompt of ``length`` tokens leaves in the cache."""
    ids = torch.zeros(1, length, dtype=torch.long)
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    return model(**inputs, use_cache=True).past_key_values


def _num_elements(cache: object) -> int:
    tensors = {id(tensor): tensor for tensor in _tensors(cache, set())}
    return sum(tensor.numel() for tensor in tensors.values() if tensor.is_floating_point())


def _tensors(holder: object, seen: set[int]) -> Iterator[torch.Tensor]:
    if id(holder) in seen:
        return
    seen.add(id(holder))
    if isinstance(holder, torch.Tensor):
        yield holder
    elif isinstance(holder, dict):
        for member in holder.values():
            yield from _tensors(member, seen)
    elif isinstance(holder, list | tuple):
        for member in holder:
            yield from _tensors(member, seen)
    elif hasattr(holder, "__dict__") and not isinstance(holder, type):
        yield from _tensors(vars(holder), seen)


def _head_dim(text: Any, num_heads: int | None) -> int | None:
    unrotated, rotated = (_number(text, f"qk_{part}_head_dim") for part in ("nope", "rope"))
    if unrotated is not None and rotated is not None:
        return unrotated + rotated
    sizes = [size for name in _HEAD_DIMS if (size := _number(text, name)) is not None]
    if sizes:
        return max(sizes)
    hidden = _number(text, "hidden_size")
    return hidden // num_heads if hidden and num_heads else None


def _window(text: Any) -> int | None:
    """The sliding window, where some layer uses it."""
    window = _number(text, "sliding_window")
    layer_types = setting(text, "layer_types")
    if layer_types is not None:
        return window if "sliding_attention" in layer_types else None
    return window if getattr(text, "use_sliding_window", True) else None


def _softcap(text: Any) -> float | None:
    softcap = setting(text, "attn_logit_softcapping")
    return float(softcap) if isinstance(softcap, int | float) and softcap else None


def _number(config: Any, name: str) -> int | None:
    number = setting(config, name)
    if isinstance(number, bool) or not isinstance(number, int):
        return None
    return number if number > 0 else None
