"""Plants faults in tiny models of many architectures, and fixes them: three kinds in whole blocks,
and plants in one part of a fused matrix or of merged experts (``fused.py``).

``make fixes`` writes the table of docs/fix.md: a row for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from precheck.cure.fix import FixRequest, fix
from precheck.records.outcomes.fix import Fix, ProofRun, Remedy
from precheck.records.precision import Dtype
from precheck.records.quantities import bits, nats
from precheck.render.parts.words import DASH
from tests.cure.fused import FUSED, planted_model
from tests.tiny_models import save_checkpoint, tiny_config, tiny_inputs, tiny_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedConfig, PreTrainedModel

HUGE = 40_000.0
"""Fits float16; twice it does not."""
BEGIN, END = "<!-- table: make fixes -->", "<!-- end of table -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Where an architecture keeps what faults are planted in; ``{}`` stands for a layer."""

    embedding: str
    last_norm: str
    output: str
    """What the feed-forward block writes with."""
    inner: tuple[str, ...]
    """What it reads with: gate and up, one matrix of both, or the only one."""
    is_gated: bool = True
    has_bias: bool = False
    post_norm: str | None = None
    """The norm that writes into the stream, where there is one."""
    shift: float = 0.0
    """1 where norms multiply by ``1 + w``."""
    is_transposed: bool = False
    """Its matrices are (in, out)."""


_LLAMA = Blocks(
    embedding="model.embed_tokens",
    last_norm="model.norm",
    output="model.layers.{}.mlp.down_proj",
    inner=("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
)
_EXPERTS = replace(
    _LLAMA,
    output="model.layers.{}.mlp.experts.down_proj",
    inner=("model.layers.{}.mlp.experts.gate_up_proj",),
)
_OLMO = replace(_LLAMA, post_norm="model.layers.{}.post_feedforward_layernorm")
_GEMMA = replace(_OLMO, shift=1.0)
_NEOX = Blocks(
    embedding="gpt_neox.embed_in",
    last_norm="gpt_neox.final_layer_norm",
    output="gpt_neox.layers.{}.mlp.dense_4h_to_h",
    inner=("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
    is_gated=False,
    has_bias=True,
)
_OPT = replace(
    _NEOX,
    embedding="model.decoder.embed_tokens",
    last_norm="model.decoder.final_layer_norm",
    output="model.decoder.layers.{}.fc2",
    inner=("model.decoder.layers.{}.fc1",),
)
_GPT2 = replace(
    _NEOX,
    embedding="transformer.wte",
    last_norm="transformer.ln_f",
    output="transformer.h.{}.mlp.c_proj",
    inner=("transformer.h.{}.mlp.c_fc",),
    is_transposed=True,
)


def _like_llama(config_class: Callable[..., PreTrainedConfig]) -> Callable[[], PreTrainedConfig]:
    return lambda: config_class(**_settings())


def _settings() -> dict[str, object]:
    llama = tiny_config("llama").to_dict()
    names = (
        "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "
        "num_key_value_heads max_position_embeddings pad_token_id bos_token_id eos_token_id"
    )
    return {name: llama[name] for name in names.split()}


def _tied() -> PreTrainedConfig:
    config = tiny_config("qwen2")
    config.tie_word_embeddings = True
    return config


ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedConfig], Blocks]] = {
    "Llama": (lambda: tiny_config("llama"), _LLAMA),
    "Qwen2": (lambda: tiny_config("qwen2"), _LLAMA),
    "Qwen2, tied": (_tied, _LLAMA),
    "Qwen3": (lambda: tiny_config("qwen3"), _LLAMA),
    "Mistral": (_like_llama(transformers.MistralConfig), _LLAMA),
    "Mixtral": (lambda: tiny_config("mixtral"), _EXPERTS),
    "Qwen3-MoE": (lambda: tiny_config("qwen3_moe"), _EXPERTS),
    "Gemma 2": (lambda: tiny_config("gemma2"), _GEMMA),
    "Gemma 3": (lambda: tiny_config("gemma3"), _GEMMA),
    "Phi-3": (
        lambda: tiny_config("phi3"),
        replace(_LLAMA, inner=("model.layers.{}.mlp.gate_up_proj",)),
    ),
    "OLMo 2": (_like_llama(transformers.Olmo2Config), _OLMO),
    "GPT-2": (lambda: tiny_config("gpt2"), _GPT2),
    "OPT": (lambda: tiny_config("opt"), _OPT),
    "GPT-NeoX": (lambda: tiny_config("gpt_neox"), _NEOX),
}


def residual(model: PreTrainedModel, blocks: Blocks) -> None:
    """Two terms that fit each and not together, in one channel that the head does not see."""
    _weight(model, blocks.last_norm)[0] = -blocks.shift
    if blocks.has_bias:
        _named(model, f"{blocks.last_norm}.bias")[0] = 0.0
    scale = 8.0 if blocks.shift else 1.0  # Gemma multiplies embeddings by the root of 64
    _weight(model, blocks.embedding)[:, 0] = HUGE / scale
    output = _weight(model, blocks.output.format(1))
    row = (slice(None), 0) if blocks.is_transposed else (..., 0, slice(None))
    if blocks.has_bias:
        output[row] = 0.0
        _named(model, f"{blocks.output.format(1)}.bias")[0] = HUGE
        return
    size = 1000.0 if blocks.post_norm else HUGE
    given = _input_of(model, blocks.output.format(1))
    output[row] = size * given / (given * given).sum(dim=-1, keepdim=True)
    if blocks.post_norm:
        # a channel that outweighs the 63 others is eight after the norm
        _weight(model, blocks.post_norm.format(1))[0] = HUGE / 8 - blocks.shift


def mlp_output(model: PreTrainedModel, blocks: Blocks) -> None:
    """The last linear of a feed-forward block writes numbers that do not fit."""
    for name in blocks.inner:
        _weight(model, name.format(1)).mul_(20.0 if blocks.is_gated else 4.0)
    _weight(model, blocks.output.format(1)).mul_(1000.0 if blocks.is_gated else 3e4)


def product(model: PreTrainedModel, blocks: Blocks) -> None:
    """``act(gate) * up`` does not fit."""
    for name in blocks.inner:
        _weight(model, name.format(1)).mul_(1000.0)


FAULTS = {"residual": residual, "MLP output": mlp_output, "product": product}


def _weight(model: PreTrainedModel, name: str) -> torch.Tensor:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters[name if name in parameters else f"{name}.weight"]


def _named(model: PreTrainedModel, name: str) -> torch.Tensor:
    return dict(model.named_parameters())[name]


def _input_of(model: PreTrainedModel, module: str) -> torch.Tensor:
    """What a module is given on the average, where all tokens bring nearly the same."""
    if not module.endswith("experts.down_proj"):
        return _given(model, module)
    # a parameter: every expert is given the same hidden states, and makes its own product
    place = module.rpartition(".")[0]
    gate, up = (model.get_submodule(place).gate_up_proj @ _given(model, place)).chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def _given(model: PreTrainedModel, module: str) -> torch.Tensor:
    given: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args: given.append(args[0])
    )
    model(**tiny_inputs(model.config.model_type))
    handle.remove()
    return given[0].flatten(0, -2).mean(dim=0)


@torch.no_grad()
def planted(architecture: str, fault: str, folder: Path) -> Path:
    """The folder, now a float32 checkpoint of the architecture with the fault in it."""
    if (architecture, fault) in FUSED:
        model = planted_model(FUSED[architecture, fault])
    else:
        config, blocks = ARCHITECTURES[architecture]
        model = tiny_of(config())
        FAULTS[fault](model, blocks)
    return save_checkpoint(model, folder, tokenizer=True)


def fixed(architecture: str, fault: str, folder: Path) -> Fix:
    """What ``precheck fix`` makes of it."""
    return fix(
        str(planted(architecture, fault, folder / "model")),
        folder / "fixed",
        request=FixRequest(),
        observe=lambda _: None,
    )


def row(architecture: str, fault: str, outcome: Fix) -> str:
    """A row of the table."""
    proof = outcome.proof
    runs = {} if proof is None else {(run.checkpoint, run.dtype): run for run in proof.runs}
    shown = (
        runs.get(("fixed", outcome.dtype)),
        runs.get(("fixed", Dtype.BFLOAT16)),
        runs.get(("original", Dtype.BFLOAT16)),
    )
    worst = min(outcome.rooms, key=lambda row: row.before_bits, default=None)
    remedy = str(outcome.remedy).replace("_", " ")
    if outcome.remedy is Remedy.RESCALING and proof is not None:
        remedy += f", {proof.exactness}"
    cells = (
        architecture,
        fault,
        remedy if outcome.holds else f"none: {outcome.sentence}",
        *(
            DASH if run is None or (kl := run.kl_divergence_mean) is None else nats(kl)
            for run in shown
        ),
        DASH if worst is None else bits(worst.before_bits),
        DASH if worst is None or outcome.remedy is not Remedy.RESCALING else bits(worst.after_bits),
    )
    return f"| {' | '.join(cells)} |"


def nats_of(run: ProofRun | None) -> str:
    """The mean KL divergence of a run, if there is one."""
    kl = None if run is None else run.kl_divergence_mean
    return DASH if kl is None else nats(kl)


def cases() -> Iterator[tuple[str, str]]:
    """Every architecture with every fault that it can have."""
    for architecture, (_, blocks) in ARCHITECTURES.items():
        for fault in FAULTS:
            if blocks.is_gated or fault != "product":
                yield architecture, fault
    yield from FUSED


def main() -> None:
    """Fix all, print the table, and put it into a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    rows = [
        "| model | planted | remedy | fixed | fixed, bfloat16 | bfloat16 | bits before | after |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for architecture, fault in cases():
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(architecture, fault, fixed(architecture, fault, Path(folder))))
        sys.stdout.write(f"{rows[-1]}\n")
        sys.stdout.flush()
    if arguments.output:
        before, _, rest = arguments.output.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        table = "\n".join(rows)
        text = f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
