"""GGUF files against llama.cpp: ``python -m benchmarks.engines.gguf_files PYTHON [FILE ...]``.

A tiny Llama is written in F16, Q8_0 and Q4_K; other files are taken as they are. llama.cpp's
server gives the log-probabilities of the token that follows each prompt, and a float32 run of the
tensors that precheck decodes gives its own. A file that is decoded or named in another way is nats
away; what is left is that llama.cpp rounds the input of every product to 8 bits, in float16 files
to float16.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.engines.asking import answer_of
from precheck.checkpoint.source import open_checkpoint
from precheck.measure.models.loading import load_model
from precheck.records.precision import Dtype
from tests.gguf_files import Kind, write_gguf
from tests.tiny_models import tiny_config, tiny_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

BLOCK = 256
NUM_PROMPTS, LENGTH = 8, 24
MOST = 300
"""Tokens to compare: llama.cpp names the likeliest."""


def q4_k(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Rows as blocks of Q4_K, each part scaled by its own range: valid, not the best there is."""
    parts = values.reshape(-1, 8, 32)
    least = np.maximum(0, -parts.min(-1))
    scale = np.maximum((parts.max(-1) + least) / 15, 1e-8)
    d, dmin = (
        np.maximum(each.max(-1, keepdims=True) / 63, 1e-7).astype(np.float16)
        for each in (scale, least)
    )
    scales = np.clip(np.round(scale / d), 1, 63).astype(np.uint8)
    offsets = np.clip(np.round(least / dmin), 0, 63).astype(np.uint8)
    steps = (d.astype(np.float32) * scales)[..., None]
    start = (dmin.astype(np.float32) * offsets)[..., None]
    numbers = np.clip(np.round((parts + start) / steps), 0, 15).astype(np.uint8)
    low, high = scales[:, :4], scales[:, 4:]
    low_offset, high_offset = offsets[:, :4], offsets[:, 4:]
    packed = np.concatenate(
        (
            low | (high >> 4) << 6,
            low_offset | (high_offset >> 4) << 6,
            (high & 15) | (high_offset & 15) << 4,
        ),
        axis=1,
    )
    pairs = numbers.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    blocks = np.concatenate((d.view(np.uint8), dmin.view(np.uint8), packed, nibbles), axis=1)
    return blocks.reshape(*values.shape[:-1], -1)


def tiny_files(folder: Path) -> Iterator[Path]:
    """A tiny Llama whose rows are whole blocks, in three types."""
    config: Any = tiny_config("llama")
    config.hidden_size, config.head_dim, config.intermediate_size = BLOCK, BLOCK // 4, 2 * BLOCK
    model = tiny_of(config)
    for kind in (Kind.F16, Kind.Q8_0, Kind.Q4_K):
        yield write_gguf(
            model,
            folder / f"tiny-{kind.name}.gguf",
            kind_of=lambda _, kind=kind: kind,
            quantizers={Kind.Q4_K: q4_k},
        )


def own_scores(file: Path, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Log-probabilities of the next token, ``(prompts, vocabulary)``, of a float32 run."""
    model, _ = load_model(open_checkpoint(str(file), observe=print), Dtype.FLOAT32)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(prompts)).logits[:, -1].double()
    return logits.log_softmax(-1).numpy()


def compare(file: Path, prompts: list[list[int]], answers: list[dict[str, float]]) -> str:
    """A row of the table: how far llama.cpp's distribution is from ours."""
    own = own_scores(file, prompts)
    divergences, largest, same = [], 0.0, 0
    compared = [pair for pair in zip(own, answers, strict=True) if pair[1]]
    for scores, answer in compared:
        ids = np.array([int(token) for token in answer])
        theirs = np.array(list(answer.values()))
        divergences.append(float((np.exp(scores[ids]) * (scores[ids] - theirs)).sum()))
        likely = scores[ids] > scores.max() - 5  # nats
        largest = max(largest, float(np.abs(scores[ids] - theirs)[likely].max()))
        same += int(ids[theirs.argmax()] == scores.argmax())
    mean = sum(divergences) / len(divergences)
    figures = f"{mean:.1e} | {max(divergences):.1e} | {largest:.3f} | {same}/{len(compared)}"
    return f"| `{file.name}` | {figures} |"


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama", metavar="LLAMA_PYTHON")
    parser.add_argument("files", nargs="*", type=Path)
    asked = parser.parse_args()
    random = np.random.default_rng(0)
    prompts: list[list[int]] = random.integers(0, 256, (NUM_PROMPTS, LENGTH)).tolist()
    with tempfile.TemporaryDirectory() as folder:
        files = [*tiny_files(Path(folder)), *(file.resolve() for file in asked.files)]
        print("| file | mean KL, nats | largest | largest difference | same first choice |")
        print("|---|---|---|---|---|")
        for file in files:
            found = answer_of(
                asked.llama,
                "llama_cpp.py",
                model=str(file),
                cache="f16",
                token_ids=prompts,
                most=MOST,
                every_position=False,
            )
            print(compare(file, prompts, [answer for (answer,) in found]))


if __name__ == "__main__":
    main()
