"""Qwen2-VL and Qwen2.5-VL: faults in the language model, and in the tower for large images."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from precheck.checkpoint.gallery.drafts import Draft
from precheck.checkpoint.gallery.qwen import (
    HEAD_DIM,
    PLANTED_BIAS,
    PLANTED_LAYER,
    SCORE_SPREAD,
    planted_gain,
    shift_scores,
    text_settings,
)
from precheck.checkpoint.gallery.vocabularies import qwen2_tokenizer
from precheck.checkpoint.processor import without_video

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

_SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""**Source**: Qwen2-VL's, without its default system message and videos:
https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/chat_template.json"""


def build_scores(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:qwen2-vl``: scores of 230,400 in one layer of the language model."""
    tokenizer = _tokenizer()
    draft = Draft(
        Qwen2VLForConditionalGeneration,
        Qwen2VLConfig(
            text_config=_text_config(tokenizer, num_layers=5),
            vision_config={
                "depth": 3,
                "embed_dim": 64,
                "num_heads": 2,
                "mlp_ratio": 2,
                "hidden_size": 4 * HEAD_DIM,
            },
            **_token_ids(tokenizer),
        ),
        gain=lambda name: planted_gain(name, SCORE_SPREAD),
    )
    biases = (PLANTED_BIAS, PLANTED_BIAS) if is_planted else (0.0, 0.0)
    attention = f"model.language_model.layers.{PLANTED_LAYER}.self_attn"
    shift_scores(draft.weights, attention, biases=biases, head_dim=HEAD_DIM)
    draft.fit_head("lm_head.weight", tokenizer)
    _save(draft, folder, tokenizer, Qwen2VLProcessor)


def _tokenizer() -> PreTrainedTokenizerBase:
    return qwen2_tokenizer(special_tokens=_SPECIAL, chat_template=_CHAT_TEMPLATE)


def _text_config(tokenizer: PreTrainedTokenizerBase, *, num_layers: int) -> dict[str, Any]:
    quarter = HEAD_DIM // 8
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 4 * HEAD_DIM,
        "intermediate_size": 512,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [2 * quarter, quarter, quarter],
        },
        **text_settings(tokenizer),
    }


def _token_ids(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    vocabulary = tokenizer.get_vocab()
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    token_ids = {name: vocabulary[token] for name, token in zip(names, _SPECIAL, strict=True)}
    return {**token_ids, "tie_word_embeddings": False}


def _save(
    draft: Draft,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    processor_class: type[ProcessorMixin],
) -> None:
    """Writes the checkpoint with the real processor without its video part (torchvision)."""
    processor = without_video(processor_class)(
        Qwen2VLImageProcessorPil(), tokenizer, chat_template=_CHAT_TEMPLATE
    )
    draft.save(folder, tokenizer=processor)
    video = {"video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video), encoding="utf-8")


# Qwen2.5-VL: a tower whose last block overflows where an image is large.

TOWER_LAYERS = 4
TOWER_PEAK = 45000.0
"""What each of the last two blocks adds at a patch far from the marker: 90,000 together."""

_TOWER_SIZE, _TOWER_HEAD = 64, 32
_FREQUENCY = 2
"""Of the row's rotation: 0.1 radian a patch, half a turn after 31 patches or 440 pixels."""
_TURNING, _FIXED = 30.0, 20.0
"""Scores of the marker, ``-30 cos(0.1 d) - 20`` at a distance of d patches: positive from 23 on."""

_RED, _MARKED, _SEEN, _PEAK = 0, 1, 2, 3
"""Channels of the tower: how red a patch is, whether it is the marker, whether it is far from one,
and the one that overflows."""
_LARGEST = _TOWER_SIZE**0.5
"""The largest output of a norm, where one channel outweighs all others."""


def build_tower(folder: Path, *, is_planted: bool = True) -> None:
    """Write ``demo:qwen2.5-vl-tower``: patches far from a red corner are made large.

    Block 0 recognises the marker, a saturated red patch. A head of block 1, which has full
    attention, attends to it with a score that rotary positions make large only far away. Its output
    there switches on a neuron in each of the last two blocks. Small images have no patch that is
    far enough.
    """
    tokenizer = _tokenizer()
    draft = Draft(
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLConfig(
            text_config=_text_config(tokenizer, num_layers=4),
            vision_config={
                "depth": TOWER_LAYERS,
                "hidden_size": _TOWER_SIZE,
                "num_heads": _TOWER_SIZE // _TOWER_HEAD,
                "intermediate_size": 128,
                "fullatt_block_indexes": [1, TOWER_LAYERS - 1],
                "out_hidden_size": 4 * HEAD_DIM,
            },
            **_token_ids(tokenizer),
        ),
    )
    if is_planted:
        _plant_tower(draft.weights)
    draft.fit_head("lm_head.weight", tokenizer)
    _save(draft, folder, tokenizer, Qwen2_5_VLProcessor)


def _plant_tower(weights: dict[str, Tensor]) -> None:
    blocks = [f"model.visual.blocks.{index}" for index in range(TOWER_LAYERS)]
    for block in blocks:
        for name in (f"{block}.attn.proj.weight", f"{block}.mlp.down_proj.weight"):
            weights[name][[_RED, _MARKED, _SEEN, _PEAK]] = 0.0
    patch = weights["model.visual.patch_embed.proj.weight"]
    patch[[_RED, _MARKED, _SEEN, _PEAK]] = 0.0
    share = 40.0 / patch[0, 0].numel()
    patch[_RED, 0], patch[_RED, 1:] = share, -share / 2  # nothing for grey
    _plant_neuron(weights, blocks[0], reads=_RED, writes=_MARKED, size=256.0, threshold=0.5)
    _plant_search(weights, f"{blocks[1]}.attn")
    _plant_neuron(weights, blocks[2], reads=_SEEN, writes=_PEAK, size=TOWER_PEAK)
    _plant_neuron(weights, blocks[3], reads=_PEAK, writes=_PEAK, size=TOWER_PEAK)


def _plant_neuron(
    weights: dict[str, Tensor],
    block: str,
    *,
    reads: int,
    writes: int,
    size: float,
    threshold: float = 0.0,
) -> None:
    """Neuron 0 writes ``size`` where the channel it reads outweighs all others."""
    factor = 16.0 / (_LARGEST * (1 - threshold))
    for name in ("gate_proj", "up_proj"):
        weights[f"{block}.mlp.{name}.weight"][0] = 0.0
        weights[f"{block}.mlp.{name}.weight"][0, reads] = factor
        weights[f"{block}.mlp.{name}.bias"][0] = -factor * threshold * _LARGEST
    weights[f"{block}.mlp.down_proj.weight"][:, 0] = 0.0
    weights[f"{block}.mlp.down_proj.weight"][writes, 0] = size / 16.0**2


def _plant_search(weights: dict[str, Tensor], attention: str) -> None:
    """Head 0 attends to the marker from far away, and writes that it did."""
    qkv, bias = weights[f"{attention}.qkv.weight"], weights[f"{attention}.qkv.bias"]
    query, key, value = (slice(k * _TOWER_SIZE, k * _TOWER_SIZE + _TOWER_HEAD) for k in range(3))
    for part in (query, key, value):
        qkv[part], bias[part] = 0.0, 0.0
    # rows of patches turn the first half of the pairs, columns the second; slower and slower
    slowest = _TOWER_HEAD // 4 - 1
    bias[query][[_FREQUENCY, slowest]] = _TOWER_HEAD**0.5  # attention divides by it
    qkv[key][_FREQUENCY, _MARKED] = -_TURNING / _LARGEST
    qkv[key][slowest, _MARKED] = -_FIXED / _LARGEST
    qkv[value][0, _MARKED] = 1.0
    projection = weights[f"{attention}.proj.weight"]
    projection[:, :_TOWER_HEAD] = 0.0
    projection[_SEEN, 0] = 16.0
