"""What projections add to keys, from the checkpoint: each bias that is stored by itself.

Of a projection that makes queries, keys and values together only a run shows which part makes keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.sizes import KeyBias, KeyValueRange

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from precheck.checkpoint.architecture import Architecture

_PROJECTIONS = ("k_proj", "key_proj", "wk")
"""What a linear that makes keys alone is called.

**Source**: ``base_model_tp_plan`` of the configs of transformers; ``stacked_params_mapping`` in
https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/models/qwen2.py
"""


def stored_key_ranges(
    model: nn.Module, layout: Architecture, vectors: Mapping[str, Tensor]
) -> tuple[KeyValueRange, ...]:
    """A row for each attention whose keys have a bias, without the figures that a run would give.

    Args:
        model: with or without its weights.
        layout: its units.
        vectors: stored tensors of one dimension, by the model's names, float32 on the CPU.
    """
    return tuple(_rows(model, layout, vectors))


def _rows(
    model: nn.Module, layout: Architecture, vectors: Mapping[str, Tensor]
) -> Iterator[KeyValueRange]:
    stack = f"{layout.decoder_layers}."
    for path, attention in model.named_modules():
        if not path.startswith(stack):
            continue
        for part in _PROJECTIONS:
            name = f"{path}.{part}.bias"
            bias, head_dim = vectors.get(name), getattr(attention, "head_dim", None)
            if bias is None or not isinstance(head_dim, int) or bias.numel() % head_dim:
                continue
            yield KeyValueRange(
                layer=int(path.removeprefix(stack).partition(".")[0]),
                section=layout.section_of(path),
                module=path,
                query=None,
                projected_key=None,
                key=None,
                value=None,
                head_dim=head_dim,
                is_key_normalised=_normalises_keys(attention),
                key_bias=KeyBias(
                    name=name,
                    abs_max=float(bias.abs().max()),
                    norm=float(bias.norm()),
                    head_norm=float(bias.view(-1, head_dim).norm(dim=-1).max()),
                ),
            )


def _normalises_keys(attention: nn.Module) -> bool:
    """Whether a normalisation of its own lies behind the projection of the keys."""
    return any(
        name.startswith("k") and "norm" in type(child).__name__.lower()
        for name, child in attention.named_children()
    )
