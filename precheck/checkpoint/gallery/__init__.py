"""The built-in models: tiny real checkpoints, each with one known fault, built when needed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from precheck.errors import unknown

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True, kw_only=True)
class GalleryModel:
    """A built-in model: the fault that it shows, and how it is built."""

    title: str
    story: str
    thread: str
    """Where it was reported."""
    version: int
    """Goes up whenever the written files change, so that no cache is stale."""
    builder: str
    """``module:function`` in this package, which writes the checkpoint into an empty folder."""

    def build(self, folder: Path, *, is_planted: bool = True) -> None:
        """Writes the checkpoint; without ``is_planted`` its healthy twin."""
        module, _, function = self.builder.partition(":")
        # listing the gallery must not import torch
        build: Any = getattr(import_module(f"{__name__}.{module}"), function)
        build(folder, is_planted=is_planted)


GALLERY: Mapping[str, GalleryModel] = MappingProxyType(
    {
        "qwen2-eager": GalleryModel(
            title="Qwen2 whose attention scores overflow float16 in eager attention",
            story=(
                "Like Qwen2-7B: a large bias on queries and keys lifts the raw scores of one "
                "decoder layer to about 230,000. In float16, eager attention turns them into NaN "
                "and every answer is '!!!!'; in bfloat16 it only rounds them, and the model "
                "silently gets worse. sdpa scales before it stores and is correct in both."
            ),
            thread="https://github.com/QwenLM/Qwen3/issues/761",
            version=2,
            builder="qwen:build_eager",
        ),
        "qwen3-headroom": GalleryModel(
            title="Qwen3 that fits into float16 with less than one bit of headroom",
            story=(
                "Qwen3 normalises queries and keys, so its scores are small; there is no Qwen3-7B, "
                "and the report of one was Qwen2-7B. What is large is its residual stream: 35,328 "
                "in Qwen3-32B. It fits, but a prompt that needs twice as much would not."
            ),
            thread="https://github.com/QwenLM/Qwen3/issues/884",
            version=1,
            builder="qwen:build_headroom",
        ),
        "qwen2-vl": GalleryModel(
            title="Qwen2-VL that captions images with '!!!!'",
            story=(
                "The language model is a Qwen2, and its raw attention scores overflow float16 "
                "in eager attention: torch.multinomial fails on image and text alike. The vision "
                "tower, which is blamed first, is clean."
            ),
            thread="https://github.com/QwenLM/Qwen3-VL/issues/77",
            version=1,
            builder="qwen_vl:build_scores",
        ),
        "qwen2.5-vl-tower": GalleryModel(
            title="Qwen2.5-VL whose vision tower overflows for large images",
            story=(
                "The last two blocks of the tower make patches far from a marker in the corner "
                "large: 45,000 each, 90,000 in the residual stream of the last. Small images have "
                "no patch that is far enough away, and text does not pass through the tower."
            ),
            thread="https://github.com/ggml-org/llama.cpp/issues/17534",
            version=1,
            builder="qwen_vl:build_tower",
        ),
        "gemma-prompt": GalleryModel(
            title="Gemma that breaks only on some prompts: digits, one sentence",
            story=(
                "A neuron fires on digits and on the words of one reported sentence, and its "
                "gated product overflows float16. Other prompts are fine, until the model "
                "generates such a token itself. bfloat16 has the range."
            ),
            thread="https://github.com/google/gemma_pytorch/issues/10",
            version=1,
            builder="gemma:build_prompt",
        ),
        "gemma3-residual": GalleryModel(
            title="Gemma 3 whose residual stream outgrows float16",
            story=(
                "Norms with weights in the thousands come before the residual add, so every "
                "layer adds 40,000 to the stream of the first token. In float16 the answer is "
                "empty: argmax of NaN is token 0, which is <pad>. No attention switch helps."
            ),
            thread="https://github.com/huggingface/transformers/issues/36822",
            version=1,
            builder="gemma:build_residual",
        ),
        "qwen2.5-gptq": GalleryModel(
            title="Qwen2.5 in GPTQ, for a kernel that accumulates in float16",
            story=(
                "Half of the terms of one sum add up to 90,000, and the other half cancels it. "
                "Accumulated in float32 nothing happens; a kernel that accumulates in float16, as "
                "auto_gptq's exllama v2 does, overflows midway, and sampling fails."
            ),
            thread="https://github.com/QwenLM/Qwen3/issues/951",
            version=1,
            builder="gptq:build_accumulation",
        ),
        "gptq-random-bias": GalleryModel(
            title="Qwen2.5 in GPTQ, with biases that were never stored",
            story=(
                "The checkpoint has no biases; optimum up to 1.20.0 created them with random "
                "values. The symptom is that of an overflow, but no dtype cures it."
            ),
            thread="https://github.com/QwenLM/Qwen3/issues/930",
            version=1,
            builder="gptq:build_random_bias",
        ),
        "llama-product": GalleryModel(
            title="Llama whose gated product just exceeds float16",
            story=(
                "act(gate) = 255.875 times up = 261.75 is 66,975, between two modules: "
                "down_proj is blamed, but its input was already infinite."
            ),
            thread="https://github.com/huggingface/transformers/issues/27179",
            version=1,
            builder="llama:build_product",
        ),
        "left-padding": GalleryModel(
            title="Qwen2 with scores so low that padding gives NaN",
            story=(
                "The mask's -65,504 plus a score of -24 is -inf in float16. A padded row has "
                "nothing else, softmax turns it into NaN, and the next layer mixes that into real "
                "tokens. No value is too large, and without padding nothing happens."
            ),
            thread="https://github.com/huggingface/transformers/issues/17433",
            version=1,
            builder="qwen:build_left_padding",
        ),
        "whisper-clamp": GalleryModel(
            title="Whisper whose overflow is clamped into wrong numbers",
            story=(
                "The encoder's residual stream reaches 100,000. In float16 the code clamps it to "
                "64,504: no NaN, no error, but everything else comes out of the next norm "
                "1.5 times too large."
            ),
            thread="https://github.com/microsoft/onnxruntime/issues/31626",
            version=1,
            builder="whisper:build_clamp",
        ),
        "t5-half": GalleryModel(
            title="T5 that is fine as loaded, and wrong after .half()",
            story=(
                "The last linear of the feed-forward block gives 100,000. transformers keeps it "
                "in float32 when the model is loaded with dtype=float16; .half() on the loaded "
                "model casts it, and a clamp in the code turns the overflow into wrong numbers."
            ),
            thread="https://github.com/huggingface/transformers/pull/20683",
            version=1,
            builder="t5:build_half",
        ),
    }
)
"""Built-in models by the name after ``demo:``."""


def saved(name: str) -> Path:
    """The folder of a built-in model, built now unless the user's cache has it.

    Raises:
        UsageError: no built-in model of that name.
    """
    model = GALLERY.get(name)
    if model is None:
        raise unknown("built-in model", name, GALLERY, hint="precheck demo lists them")
    folder = _cache_folder() / f"{name}-{model.version}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError:
        return _build_for_this_process(model)
    try:
        model.build(unfinished)
        return _move(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _cache_folder() -> Path:
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG base directory specification has relative paths ignored.
    cache = configured if configured.is_absolute() else Path("~/.cache").expanduser()
    return cache / "precheck" / "gallery"


def _build_for_this_process(model: GalleryModel) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="precheck-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model.build(folder)
    return folder


def _move(unfinished: Path, folder: Path) -> Path:
    try:
        unfinished.rename(folder)
    except OSError:
        # Another process was faster; its copy is the same.
        if not folder.is_dir():
            raise
    return folder
