"""Models with an image tower that breaks on images of some sizes: patches so far apart.

One head of a block has queries and keys that no image changes. Rotary positions make their score
largest for two patches that are a drawn number of rows and of columns apart, and it falls off on
both sides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from precheck.checkpoint.processor import without_video
from tests.hunt.words import BOS, EOS, PAD, image_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

PATCH = 14
"""Pixels."""
LIMIT = 65_504.0
_HIDDEN, _HEAD, _DEPTH = 64, 32, 4
_TEXT = 64
_FREQUENCIES = (0, 1, 2, 3)
"""1, 0.32, 0.1 and 0.03 radians a patch, of eight for rows and as many for columns."""
_MOST_PATCHES = 1600
"""The processor makes larger images smaller."""
_TIMES = 1.2
"""What the largest score is of the limit."""


def save_with_tower(
    architecture: str, folder: Path, *, vocab_size: int, generator: torch.Generator
) -> tuple[str, tuple[int, int]]:
    """Saves a float32 checkpoint with its processor.

    Args:
        architecture: ``Qwen2VL`` or ``Qwen2_5_VL``.
        folder: where.
        vocab_size: of the tokenizer, besides the tokens of images.
        generator: of weights, the block and the size.

    Returns:
        The attention that overflows, and the rows and columns between two patches that it takes.
    """
    tokenizer = image_tokenizer(vocab_size)
    model = _healthy(architecture, tokenizer, generator)
    number = _DEPTH - 1  # full attention in both, and no tower is broken before it
    rows, columns = _far(generator)
    with torch.no_grad():
        _search(model.model.visual.blocks[number].attn, rows=rows, columns=columns)
    model.save_pretrained(folder)
    processor = without_video(getattr(transformers, f"{architecture}Processor"))
    processor(
        Qwen2VLImageProcessorPil(
            size={"shortest_edge": (4 * PATCH) ** 2, "longest_edge": _MOST_PATCHES * PATCH**2}
        ),
        tokenizer,
        chat_template=tokenizer.chat_template,
    ).save_pretrained(folder)
    return f"model.visual.blocks.{number}.attn", (rows, columns)


def _healthy(architecture: str, tokenizer: Any, generator: torch.Generator) -> Any:
    names = ("vision_start", "vision_end", "image", "video")
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    is_newer = architecture == "Qwen2_5_VL"
    tower = {
        "depth": _DEPTH,
        "num_heads": _HIDDEN // _HEAD,
        **(
            {
                "hidden_size": _HIDDEN,
                "intermediate_size": 96,
                "out_hidden_size": _TEXT,
                "fullatt_block_indexes": [1, _DEPTH - 1],
            }
            if is_newer
            else {"embed_dim": _HIDDEN, "mlp_ratio": 2, "hidden_size": _TEXT}
        ),
    }
    config = getattr(transformers, f"{architecture}Config")(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": _TEXT,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [8, 4, 4],
            },
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        },
        vision_config=tower,
        **{
            f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
            for name, token in zip(names, tokens, strict=True)
        },
    )
    config.dtype = torch.float32
    model = getattr(transformers, f"{architecture}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.06)
    return model


def _far(generator: torch.Generator) -> tuple[int, int]:
    """Rows and columns between two patches; more of one than the built-in images have.

    Four fifths of the patches of the largest image lie between them: few shapes have both.
    """
    more, is_wide = (int(torch.randint(most, (1,), generator=generator)) for most in (20, 2))
    many = 42 + more
    few = 4 * _MOST_PATCHES // (5 * many)
    return (few, many) if is_wide else (many, few)


def _search(attention: Any, *, rows: int, columns: int) -> None:
    """Head 0 scores two patches by how far they are apart, and nothing else."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    query, key = slice(0, _HEAD), slice(_HIDDEN, _HIDDEN + _HEAD)
    for part in (query, key):
        weight[part] = 0.0
        bias[part] = 0.0
    half, quarter = _HEAD // 2, _HEAD // 4
    size = (_TIMES * LIMIT / (2 * len(_FREQUENCIES))) ** 0.5
    for first, distance in ((0, rows), (quarter, columns)):
        for index in _FREQUENCIES:
            angle = torch.tensor(-distance * 10_000.0 ** (-index / quarter))
            pair = [first + index, half + first + index]
            bias[query][pair] = size * torch.stack([angle.cos(), angle.sin()])
            bias[key][pair[0]] = size
