"""Faults with a known answer: tiny models in which exactly one operation leaves float16 first.

``python -m tests.planted`` prints the catalogue beside what the brute-force oracle finds.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType
from typing import TYPE_CHECKING

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from precheck.records.mechanism import Mechanism
from precheck.records.precision import Dtype
from tests import tiny_models
from tests.oracle import FirstFault, first_fault
from tests.pinned import marks
from tests.tiny_models import HIDDEN_SIZE, NUM_HEADS, save_checkpoint, tiny, tiny_inputs

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet

Plant = Callable[[PreTrainedModel], None]
Index = int | slice | EllipsisType | tuple[int | slice, ...]

HEAD_DIM = HIDDEN_SIZE // NUM_HEADS
HUGE = 40_000.0
"""Fits float16; twice it does not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlantedFault:
    """A fault and the operation that has to be named for it."""

    name: str
    architecture: str
    mechanism: Mechanism
    dtype: Dtype = Dtype.FLOAT16
    attn_implementation: str = "eager"
    module: str
    """As ``named_modules()`` spells it."""
    layer: int | None
    op: str
    """The ATen name without overload, ``aten.bmm``."""
    file: str
    """Base name of the modeling file."""
    scope: str
    """The class or function of that file in which the operation is written."""
    code: str
    """Part of the line."""
    occurrence: int = 0
    """Which of the lines in the scope that have this text."""
    absorbed: bool = False
    left_padded: bool = False
    """The fault needs a left-padded batch."""
    plant: Plant
    """Changes a healthy model in place."""

    @property
    def source(self) -> str:
        """Base name of the file and line in the installed transformers, ``modeling_x.py:155``."""
        family = self.file.removeprefix("modeling_").removesuffix(".py")
        modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        lines, start = inspect.getsourcelines(getattr(modeling, self.scope))
        found = [start + offset for offset, line in enumerate(lines) if self.code in line]
        return f"{self.file}:{found[self.occurrence]}"


def planted_model(fault: PlantedFault) -> PreTrainedModel:
    """The float32 model with the fault in it; it is finite in float32."""
    model = tiny(fault.architecture)
    with torch.no_grad():
        fault.plant(model)
    return model


def planted_checkpoint(fault: PlantedFault, folder: Path, *, tokenizer: bool = False) -> Path:
    """The folder, now a float32 checkpoint of the planted model."""
    return save_checkpoint(planted_model(fault), folder, tokenizer=tokenizer)


def fault_inputs(
    fault: PlantedFault, *, batch: int = 3, length: int = 12, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Inputs that show the fault: random token ids, left-padded if it needs that."""
    return tiny_inputs(
        fault.architecture,
        batch=batch,
        length=length,
        left_padded=fault.left_padded,
        seed=seed,
    )


def scaled(*names: str, by: float, at: Index = ...) -> Plant:
    """Multiplies part of the named parameters; a module's name means its weight."""

    def plant(model: PreTrainedModel) -> None:
        for name in names:
            _parameter(model, name)[at] *= by

    return plant


def filled(*names: str, to: float, at: Index = ...) -> Plant:
    """Overwrites part of the named parameters; a module's name means its weight."""

    def plant(model: PreTrainedModel) -> None:
        for name in names:
            _parameter(model, name)[at] = to

    return plant


def aimed(name: str, *, at: int, value: float) -> Plant:
    """Lets a linear module without bias write ``value`` into one channel, for any token.

    Only where all tokens bring the module nearly the same input, as below a massive channel.
    """

    def plant(model: PreTrainedModel) -> None:
        read: list[torch.Tensor] = []
        handle = model.get_submodule(name).register_forward_pre_hook(
            lambda _, args: read.append(args[0])
        )
        model(**tiny_inputs(model.config.model_type))
        handle.remove()
        mean = read[0].flatten(0, -2).mean(dim=0)
        _parameter(model, name)[at] = value * mean / (mean @ mean)

    return plant


def together(*plants: Plant) -> Plant:
    """One after the other."""

    def plant(model: PreTrainedModel) -> None:
        for plant in plants:
            plant(model)

    return plant


def _parameter(model: PreTrainedModel, name: str) -> torch.Tensor:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return parameters[name if name in parameters else f"{name}.weight"]


def _fused_qk(name: str, *, by: float) -> Plant:
    """Scales queries and keys where a head's q, k and v are rows of one matrix, head by head."""

    def plant(model: PreTrainedModel) -> None:
        weight = _parameter(model, name)
        weight.view(NUM_HEADS, 3, HEAD_DIM, -1)[:, :2] *= by

    return plant


_SLOWEST = HEAD_DIM - 1
"""The channel of a head that RoPE turns slowest, over a few hundred tokens hardly."""
_SLOWEST_OF_EACH = slice(_SLOWEST, None, HEAD_DIM)

_RAW_SCORES = "torch.matmul(query, key"
_SOFTMAX = "nn.functional.softmax(attn_weights, dim=-1"
_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
_RESIDUAL = "hidden_states = residual + hidden_states"

_SCORES = (
    PlantedFault(
        name="qwen2-scores",
        architecture="qwen2",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.layers.1.self_attn",
        layer=1,
        op="aten.bmm",
        file="modeling_qwen2.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=together(
            filled(
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.self_attn.k_proj",
                to=0.0,
                at=_SLOWEST,
            ),
            filled(
                "model.layers.1.self_attn.q_proj.bias",
                "model.layers.1.self_attn.k_proj.bias",
                to=480.0,
                at=_SLOWEST,
            ),
        ),
    ),
    PlantedFault(
        name="qwen3-scores",
        architecture="qwen3",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.layers.1.self_attn",
        layer=1,
        op="aten.bmm",
        file="modeling_qwen3.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "model.layers.1.self_attn.q_norm", "model.layers.1.self_attn.k_norm", by=1000.0
        ),
    ),
    PlantedFault(
        name="llama-scores",
        architecture="llama",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.layers.2.self_attn",
        layer=2,
        op="aten.bmm",
        file="modeling_llama.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.k_proj", by=1000.0
        ),
    ),
    PlantedFault(
        name="gpt2-scores",
        architecture="gpt2",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="transformer.h.1.attn",
        layer=1,
        op="aten.bmm",
        file="modeling_gpt2.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "transformer.h.1.attn.c_attn",
            by=1000.0,
            at=(slice(None), slice(0, 2 * HIDDEN_SIZE)),
        ),
    ),
    PlantedFault(
        name="opt-scores",
        architecture="opt",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.decoder.layers.0.self_attn",
        layer=0,
        op="aten.bmm",
        file="modeling_opt.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "model.decoder.layers.0.self_attn.q_proj",
            "model.decoder.layers.0.self_attn.k_proj",
            by=1000.0,
        ),
    ),
    PlantedFault(
        name="gpt_neox-scores",
        architecture="gpt_neox",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="gpt_neox.layers.1.attention",
        layer=1,
        op="aten.bmm",
        file="modeling_gpt_neox.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=_fused_qk("gpt_neox.layers.1.attention.query_key_value", by=1000.0),
    ),
    PlantedFault(
        name="bloom-scores",
        architecture="bloom",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="transformer.h.1.self_attention",
        layer=1,
        op="aten.baddbmm",
        file="modeling_bloom.py",
        scope="BloomAttention",
        code="attention_scores = alibi.baddbmm(",
        plant=_fused_qk("transformer.h.1.self_attention.query_key_value", by=3000.0),
    ),
    PlantedFault(
        name="t5-cross-scores",
        architecture="t5",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="decoder.block.1.layer.1.EncDecAttention",
        layer=1,
        op="aten.bmm",
        file="modeling_t5.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "decoder.block.1.layer.1.EncDecAttention.q",
            "decoder.block.1.layer.1.EncDecAttention.k",
            by=2000.0,
        ),
    ),
    PlantedFault(
        name="bert-scores",
        architecture="bert",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="bert.encoder.layer.1.attention.self",
        layer=1,
        op="aten.bmm",
        file="modeling_bert.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        plant=scaled(
            "bert.encoder.layer.1.attention.self.query",
            "bert.encoder.layer.1.attention.self.key",
            by=1000.0,
        ),
    ),
)

_PRODUCTS = (
    PlantedFault(
        name="qwen2-product",
        architecture="qwen2",
        mechanism=Mechanism.GATED_PRODUCT,
        attn_implementation="sdpa",
        module="model.layers.1.mlp",
        layer=1,
        op="aten.mul",
        file="modeling_qwen2.py",
        scope="Qwen2MLP",
        code=_GATED,
        plant=scaled("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", by=1000.0),
    ),
    PlantedFault(
        name="gemma2-product",
        architecture="gemma2",
        mechanism=Mechanism.GATED_PRODUCT,
        module="model.layers.2.mlp",
        layer=2,
        op="aten.mul",
        file="modeling_gemma2.py",
        scope="Gemma2MLP",
        code=_GATED,
        plant=scaled("model.layers.2.mlp.gate_proj", "model.layers.2.mlp.up_proj", by=1000.0),
    ),
    PlantedFault(
        name="phi3-product",
        architecture="phi3",
        mechanism=Mechanism.GATED_PRODUCT,
        module="model.layers.1.mlp",
        layer=1,
        op="aten.mul",
        file="modeling_phi3.py",
        scope="Phi3MLP",
        code="up_states = up_states * self.activation_fn(gate)",
        plant=scaled("model.layers.1.mlp.gate_up_proj", by=1000.0),
    ),
    PlantedFault(
        name="mixtral-product",
        architecture="mixtral",
        mechanism=Mechanism.GATED_PRODUCT,
        module="model.layers.1.mlp.experts",
        layer=1,
        op="aten.mul",
        file="modeling_mixtral.py",
        scope="MixtralSparseMoeBlock",
        code="hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)",
        plant=scaled("model.layers.1.mlp.experts.gate_up_proj", by=1000.0),
    ),
    PlantedFault(
        name="t5-product",
        architecture="t5",
        mechanism=Mechanism.GATED_PRODUCT,
        module="encoder.block.1.layer.1.DenseReluDense",
        layer=1,
        op="aten.mul",
        file="modeling_t5.py",
        scope="T5DenseGatedActDense",
        code="hidden_states = hidden_gelu * hidden_linear",
        # Its gelu_new would overflow first for a gate above 40.
        plant=together(
            scaled("encoder.block.1.layer.1.DenseReluDense.wi_0", by=4.0),
            scaled("encoder.block.1.layer.1.DenseReluDense.wi_1", by=8000.0),
        ),
    ),
)

_OUTPUTS = (
    PlantedFault(
        name="llama-output",
        architecture="llama",
        mechanism=Mechanism.MLP_OUTPUT,
        attn_implementation="sdpa",
        module="model.layers.1.mlp.down_proj",
        layer=1,
        op="aten.mm",
        file="modeling_llama.py",
        scope="LlamaMLP",
        code=_GATED,
        plant=together(
            scaled("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj", by=20.0),
            scaled("model.layers.1.mlp.down_proj", by=1000.0),
        ),
    ),
    PlantedFault(
        name="gpt2-output",
        architecture="gpt2",
        mechanism=Mechanism.MLP_OUTPUT,
        module="transformer.h.1.mlp.c_proj",
        layer=1,
        op="aten.addmm",
        file="modeling_gpt2.py",
        scope="GPT2MLP",
        code="hidden_states = self.c_proj(hidden_states)",
        plant=together(
            scaled("transformer.h.1.mlp.c_fc", by=4.0),
            scaled("transformer.h.1.mlp.c_proj", by=1e5),
        ),
    ),
    PlantedFault(
        name="opt-output",
        architecture="opt",
        mechanism=Mechanism.MLP_OUTPUT,
        module="model.decoder.layers.1.fc2",
        layer=1,
        op="aten.addmm",
        file="modeling_opt.py",
        scope="OPTDecoderLayer",
        code="hidden_states = self.fc2(hidden_states)",
        plant=together(
            scaled("model.decoder.layers.1.fc1", by=300.0),
            scaled("model.decoder.layers.1.fc2", by=3000.0),
        ),
    ),
    PlantedFault(
        name="gpt_neox-output",
        architecture="gpt_neox",
        mechanism=Mechanism.MLP_OUTPUT,
        attn_implementation="sdpa",
        module="gpt_neox.layers.2.mlp.dense_4h_to_h",
        layer=2,
        op="aten.addmm",
        file="modeling_gpt_neox.py",
        scope="GPTNeoXMLP",
        code="hidden_states = self.dense_4h_to_h(hidden_states)",
        plant=together(
            scaled("gpt_neox.layers.2.mlp.dense_h_to_4h", by=300.0),
            scaled("gpt_neox.layers.2.mlp.dense_4h_to_h", by=3000.0),
        ),
    ),
    PlantedFault(
        name="bert-output",
        architecture="bert",
        mechanism=Mechanism.MLP_OUTPUT,
        attn_implementation="sdpa",
        module="bert.encoder.layer.1.output.dense",
        layer=1,
        op="aten.addmm",
        file="modeling_bert.py",
        scope="BertOutput",
        code="hidden_states = self.dense(hidden_states)",
        plant=together(
            scaled("bert.encoder.layer.1.intermediate.dense", by=300.0),
            scaled("bert.encoder.layer.1.output.dense", by=3000.0),
        ),
    ),
    PlantedFault(
        name="qwen3_moe-output",
        architecture="qwen3_moe",
        mechanism=Mechanism.MLP_OUTPUT,
        module="model.layers.1.mlp.experts",
        layer=1,
        op="aten._grouped_mm",
        file="modeling_qwen3_moe.py",
        scope="Qwen3MoeSparseMoeBlock",
        code="final_hidden_states = self.experts(",
        plant=together(
            scaled("model.layers.1.mlp.experts.gate_up_proj", by=20.0),
            scaled("model.layers.1.mlp.experts.down_proj", by=1000.0),
        ),
    ),
)

_RESIDUALS = (
    PlantedFault(
        name="qwen2-residual",
        architecture="qwen2",
        mechanism=Mechanism.RESIDUAL,
        attn_implementation="sdpa",
        module="model.layers.1",
        layer=1,
        op="aten.add",
        file="modeling_qwen2.py",
        scope="Qwen2DecoderLayer",
        code=_RESIDUAL,
        occurrence=1,
        plant=together(
            filled("model.embed_tokens", to=HUGE, at=(slice(None), 0)),
            aimed("model.layers.1.mlp.down_proj", at=0, value=HUGE),
        ),
    ),
    PlantedFault(
        name="llama-residual",
        architecture="llama",
        mechanism=Mechanism.RESIDUAL,
        module="model.layers.1",
        layer=1,
        op="aten.add",
        file="modeling_llama.py",
        scope="LlamaDecoderLayer",
        code=_RESIDUAL,
        plant=together(
            filled("model.embed_tokens", to=HUGE, at=(slice(None), 0)),
            aimed("model.layers.1.self_attn.o_proj", at=0, value=HUGE),
        ),
    ),
    PlantedFault(
        name="gemma3-residual",
        architecture="gemma3",
        mechanism=Mechanism.RESIDUAL,
        attn_implementation="sdpa",
        module="model.layers.1",
        layer=1,
        op="aten.add",
        file="modeling_gemma3.py",
        scope="Gemma3DecoderLayer",
        code=_RESIDUAL,
        occurrence=1,
        plant=together(
            filled("model.embed_tokens", to=HUGE / 8, at=(slice(None), 0)),
            aimed("model.layers.1.mlp.down_proj", at=0, value=1000.0),
            filled("model.layers.1.post_feedforward_layernorm", to=HUGE / 8 - 1, at=0),
        ),
    ),
    PlantedFault(
        name="gemma2-residual",
        architecture="gemma2",
        mechanism=Mechanism.RESIDUAL,
        module="model.layers.0",
        layer=0,
        op="aten.add",
        file="modeling_gemma2.py",
        scope="Gemma2DecoderLayer",
        code=_RESIDUAL,
        plant=together(
            filled("model.embed_tokens", to=HUGE / 8, at=(slice(None), 0)),
            aimed("model.layers.0.self_attn.o_proj", at=0, value=1000.0),
            filled("model.layers.0.post_attention_layernorm", to=HUGE / 8 - 1, at=0),
        ),
    ),
    PlantedFault(
        name="gpt2-residual",
        architecture="gpt2",
        mechanism=Mechanism.RESIDUAL,
        attn_implementation="sdpa",
        module="transformer.h.1",
        layer=1,
        op="aten.add",
        file="modeling_gpt2.py",
        scope="GPT2Block",
        code="hidden_states = residual + feed_forward_hidden_states",
        plant=together(
            filled("transformer.wte", to=HUGE, at=(slice(None), 0)),
            filled("transformer.h.1.mlp.c_proj", to=0.0, at=(slice(None), 0)),
            filled("transformer.h.1.mlp.c_proj.bias", to=HUGE, at=0),
        ),
    ),
    PlantedFault(
        name="opt-residual",
        architecture="opt",
        mechanism=Mechanism.RESIDUAL,
        attn_implementation="sdpa",
        module="model.decoder.layers.1",
        layer=1,
        op="aten.add",
        file="modeling_opt.py",
        scope="OPTDecoderLayer",
        code="hidden_states = (residual + hidden_states).view(hidden_states_shape)",
        plant=together(
            filled("model.decoder.embed_tokens", to=HUGE, at=(slice(None), 0)),
            filled("model.decoder.layers.1.fc2", to=0.0, at=0),
            filled("model.decoder.layers.1.fc2.bias", to=HUGE, at=0),
        ),
    ),
    PlantedFault(
        name="gpt_neox-residual",
        architecture="gpt_neox",
        mechanism=Mechanism.RESIDUAL,
        module="gpt_neox.layers.1",
        layer=1,
        op="aten.add",
        file="modeling_gpt_neox.py",
        scope="GPTNeoXLayer",
        code="hidden_states = mlp_output + attn_output + hidden_states",
        plant=together(
            filled("gpt_neox.embed_in", to=HUGE, at=(slice(None), 0)),
            filled(
                "gpt_neox.layers.1.mlp.dense_4h_to_h",
                "gpt_neox.layers.1.attention.dense",
                to=0.0,
                at=0,
            ),
            filled(
                "gpt_neox.layers.1.mlp.dense_4h_to_h.bias",
                "gpt_neox.layers.1.attention.dense.bias",
                to=HUGE / 2,
                at=0,
            ),
        ),
    ),
    PlantedFault(
        name="bert-residual",
        architecture="bert",
        mechanism=Mechanism.RESIDUAL,
        attn_implementation="sdpa",
        module="bert.encoder.layer.1.output",
        layer=1,
        op="aten.add",
        file="modeling_bert.py",
        scope="BertOutput",
        code="hidden_states = self.LayerNorm(hidden_states + input_tensor)",
        plant=together(
            filled("bert.encoder.layer.1.attention.output.LayerNorm.bias", to=HUGE, at=0),
            filled("bert.encoder.layer.1.intermediate.dense", to=0.0, at=(slice(None), 0)),
            filled("bert.encoder.layer.1.output.dense.bias", to=HUGE, at=0),
        ),
    ),
)

_PROJECTIONS = (
    PlantedFault(
        name="qwen3-value-projection",
        architecture="qwen3",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="model.layers.1.self_attn.v_proj",
        layer=1,
        op="aten.mm",
        file="modeling_qwen3.py",
        scope="Qwen3Attention",
        code="value_states = self.v_proj(hidden_states)",
        plant=scaled("model.layers.1.self_attn.v_proj", by=1e5),
    ),
    PlantedFault(
        name="mixtral-output-projection",
        architecture="mixtral",
        mechanism=Mechanism.PROJECTION,
        module="model.layers.2.self_attn.o_proj",
        layer=2,
        op="aten.mm",
        file="modeling_mixtral.py",
        scope="MixtralAttention",
        code="attn_output = self.o_proj(attn_output)",
        plant=scaled("model.layers.2.self_attn.o_proj", by=1e5),
    ),
    PlantedFault(
        name="llama-up-projection",
        architecture="llama",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="model.layers.1.mlp.up_proj",
        layer=1,
        op="aten.mm",
        file="modeling_llama.py",
        scope="LlamaMLP",
        code=_GATED,
        plant=scaled("model.layers.1.mlp.up_proj", by=1e5),
    ),
    PlantedFault(
        name="gpt2-output-projection",
        architecture="gpt2",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="transformer.h.0.attn.c_proj",
        layer=0,
        op="aten.addmm",
        file="modeling_gpt2.py",
        scope="GPT2Attention",
        code="attn_output = self.c_proj(attn_output)",
        plant=scaled("transformer.h.0.attn.c_proj", by=1e5),
    ),
    PlantedFault(
        name="bert-output-projection",
        architecture="bert",
        mechanism=Mechanism.PROJECTION,
        module="bert.encoder.layer.1.attention.output.dense",
        layer=1,
        op="aten.addmm",
        file="modeling_bert.py",
        scope="BertSelfOutput",
        code="hidden_states = self.dense(hidden_states)",
        plant=scaled("bert.encoder.layer.1.attention.output.dense", by=1e5),
    ),
    PlantedFault(
        name="t5-query-projection",
        architecture="t5",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="decoder.block.1.layer.0.SelfAttention.q",
        layer=1,
        op="aten.mm",
        file="modeling_t5.py",
        scope="T5Attention",
        code="query_states = self.q(hidden_states)",
        plant=scaled("decoder.block.1.layer.0.SelfAttention.q", by=3e5),
    ),
)

_NORMS = (
    PlantedFault(
        name="gemma3-norm-cast",
        architecture="gemma3",
        mechanism=Mechanism.NORM,
        module="model.layers.1.post_attention_layernorm",
        layer=1,
        op="aten._to_copy",
        file="modeling_gemma3.py",
        scope="Gemma3RMSNorm",
        code="return output.type_as(x)",
        plant=filled("model.layers.1.post_attention_layernorm", to=50_000.0),
    ),
    PlantedFault(
        name="gemma2-final-norm-cast",
        architecture="gemma2",
        mechanism=Mechanism.NORM,
        module="model.norm",
        layer=None,
        op="aten._to_copy",
        file="modeling_gemma2.py",
        scope="Gemma2RMSNorm",
        code="return output.type_as(x)",
        plant=filled("model.norm", to=50_000.0),
    ),
    PlantedFault(
        name="qwen2-norm-weight",
        architecture="qwen2",
        mechanism=Mechanism.NORM,
        attn_implementation="sdpa",
        module="model.layers.1.post_attention_layernorm",
        layer=1,
        op="aten.mul",
        file="modeling_qwen2.py",
        scope="Qwen2RMSNorm",
        code="return self.weight * hidden_states.to(input_dtype)",
        plant=filled("model.layers.1.post_attention_layernorm", to=50_000.0),
    ),
    PlantedFault(
        name="gpt2-layer-norm",
        architecture="gpt2",
        mechanism=Mechanism.NORM,
        module="transformer.h.1.ln_1",
        layer=1,
        op="aten.native_layer_norm",
        file="modeling_gpt2.py",
        scope="GPT2Block",
        code="hidden_states = self.ln_1(hidden_states)",
        plant=filled("transformer.h.1.ln_1", to=50_000.0),
    ),
    PlantedFault(
        name="t5-norm-weight",
        architecture="t5",
        mechanism=Mechanism.NORM,
        module="encoder.block.1.layer.0.layer_norm",
        layer=1,
        op="aten.mul",
        file="modeling_t5.py",
        scope="T5LayerNorm",
        code="return self.weight * hidden_states",
        plant=filled("encoder.block.1.layer.0.layer_norm", to=50_000.0),
    ),
)

_ENDS = (
    PlantedFault(
        name="gemma3-embedding-scale",
        architecture="gemma3",
        mechanism=Mechanism.EMBEDDING,
        attn_implementation="sdpa",
        module="model.embed_tokens",
        layer=None,
        op="aten.mul",
        file="modeling_gemma3.py",
        scope="Gemma3TextScaledWordEmbedding",
        code="return super().forward(input_ids) * self.embed_scale",
        plant=scaled("model.embed_tokens", by=20_000.0),
    ),
    PlantedFault(
        name="gpt2-embedding-sum",
        architecture="gpt2",
        mechanism=Mechanism.EMBEDDING,
        module="transformer",
        layer=None,
        op="aten.add",
        file="modeling_gpt2.py",
        scope="GPT2Model",
        code="hidden_states = inputs_embeds + position_embeds",
        plant=filled("transformer.wte", "transformer.wpe", to=HUGE, at=(slice(None), 0)),
    ),
    PlantedFault(
        name="bert-embedding-sum",
        architecture="bert",
        mechanism=Mechanism.EMBEDDING,
        module="bert.embeddings",
        layer=None,
        op="aten.add",
        file="modeling_bert.py",
        scope="BertEmbeddings",
        code="embeddings = inputs_embeds + token_type_embeddings",
        plant=filled(
            "bert.embeddings.word_embeddings",
            "bert.embeddings.token_type_embeddings",
            to=HUGE,
            at=(slice(None), 0),
        ),
    ),
    PlantedFault(
        name="llama-logits",
        architecture="llama",
        mechanism=Mechanism.LOGITS,
        attn_implementation="sdpa",
        module="lm_head",
        layer=None,
        op="aten.mm",
        file="modeling_llama.py",
        scope="LlamaForCausalLM",
        code="logits = self.lm_head(hidden_states",
        plant=scaled("lm_head", by=30_000.0),
    ),
    PlantedFault(
        name="gpt2-logits",
        architecture="gpt2",
        mechanism=Mechanism.LOGITS,
        module="lm_head",
        layer=None,
        op="aten.mm",
        file="modeling_gpt2.py",
        scope="GPT2LMHeadModel",
        code="logits = self.lm_head(hidden_states",
        plant=scaled("transformer.ln_f", by=10_000.0),
    ),
    PlantedFault(
        name="bert-logits",
        architecture="bert",
        mechanism=Mechanism.LOGITS,
        module="cls.predictions.decoder",
        layer=None,
        op="aten.addmm",
        file="modeling_bert.py",
        scope="BertLMPredictionHead",
        code="hidden_states = self.decoder(hidden_states)",
        plant=scaled("cls.predictions.transform.LayerNorm", by=10_000.0),
    ),
)

_ABSORBED = (
    PlantedFault(
        name="gpt2-absorbed-pow",
        architecture="gpt2",
        mechanism=Mechanism.OTHER,
        attn_implementation="sdpa",
        module="transformer.h.1.mlp.act",
        layer=1,
        op="aten.pow",
        file="modeling_gpt2.py",
        scope="GPT2MLP",
        code="hidden_states = self.act(hidden_states)",
        absorbed=True,
        plant=together(
            filled("transformer.h.1.mlp.c_fc.bias", to=60.0, at=0),
            scaled("transformer.h.1.mlp.c_proj", by=0.01, at=0),
        ),
    ),
    PlantedFault(
        name="bloom-absorbed-gelu",
        architecture="bloom",
        mechanism=Mechanism.OTHER,
        module="transformer.h.1.mlp.gelu_impl",
        layer=1,
        op="aten.mul",
        file="modeling_bloom.py",
        scope="bloom_gelu_forward",
        code="return x * 0.5 * (1.0 + torch.tanh(",
        absorbed=True,
        plant=together(
            filled("transformer.h.1.mlp.dense_h_to_4h.bias", to=160.0, at=0),
            scaled("transformer.h.1.mlp.dense_4h_to_h", by=0.005, at=(slice(None), 0)),
        ),
    ),
    PlantedFault(
        name="gemma2-absorbed-scores",
        architecture="gemma2",
        mechanism=Mechanism.ATTENTION_SCORES,
        module="model.layers.1.self_attn",
        layer=1,
        op="aten.bmm",
        file="modeling_gemma2.py",
        scope="eager_attention_forward",
        code=_RAW_SCORES,
        absorbed=True,
        plant=scaled(
            "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.k_proj", by=1000.0
        ),
    ),
    PlantedFault(
        name="opt-absorbed-relu",
        architecture="opt",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="model.decoder.layers.1.fc1",
        layer=1,
        op="aten.addmm",
        file="modeling_opt.py",
        scope="OPTDecoderLayer",
        code="hidden_states = self.fc1(hidden_states)",
        absorbed=True,
        # A constant channel of the norm, so that the row is as negative for every token.
        plant=together(
            filled("model.decoder.layers.1.final_layer_norm", to=0.0, at=0),
            filled("model.decoder.layers.1.final_layer_norm.bias", to=10.0, at=0),
            filled("model.decoder.layers.1.fc1", to=0.0, at=(slice(None), 0)),
            filled("model.decoder.layers.1.fc1", to=-10_000.0, at=(0, 0)),
        ),
    ),
    PlantedFault(
        name="t5-absorbed-clamp",
        architecture="t5",
        mechanism=Mechanism.PROJECTION,
        attn_implementation="sdpa",
        module="encoder.block.0.layer.0.SelfAttention.o",
        layer=0,
        op="aten.mm",
        file="modeling_t5.py",
        scope="T5Attention",
        code="attn_output = self.o(attn_output)",
        absorbed=True,
        plant=scaled("encoder.block.0.layer.0.SelfAttention.o", by=1e5, at=0),
    ),
)

# Queries and keys that are opposite and constant make every score of a row equally negative,
# which a softmax does not see, unless finfo.min plus the score is -inf for all of them.
_MASKS = (
    PlantedFault(
        name="gpt2-masked-row",
        architecture="gpt2",
        mechanism=Mechanism.MASK,
        module="transformer.h.1.attn",
        layer=1,
        op="aten._softmax",
        file="modeling_gpt2.py",
        scope="eager_attention_forward",
        code=_SOFTMAX,
        left_padded=True,
        plant=together(
            filled("transformer.h.1.attn.c_attn.bias", to=4.0, at=slice(0, HIDDEN_SIZE)),
            filled(
                "transformer.h.1.attn.c_attn.bias",
                to=-4.0,
                at=slice(HIDDEN_SIZE, 2 * HIDDEN_SIZE),
            ),
        ),
    ),
    PlantedFault(
        name="opt-masked-row",
        architecture="opt",
        mechanism=Mechanism.MASK,
        module="model.decoder.layers.1.self_attn",
        layer=1,
        op="aten._softmax",
        file="modeling_opt.py",
        scope="eager_attention_forward",
        code=_SOFTMAX,
        left_padded=True,
        plant=together(
            filled("model.decoder.layers.1.self_attn.q_proj.bias", to=4.0),
            filled("model.decoder.layers.1.self_attn.k_proj.bias", to=-4.0),
        ),
    ),
    PlantedFault(
        name="qwen2-masked-row",
        architecture="qwen2",
        mechanism=Mechanism.MASK,
        module="model.layers.1.self_attn",
        layer=1,
        op="aten._softmax",
        file="modeling_qwen2.py",
        scope="eager_attention_forward",
        code=_SOFTMAX,
        left_padded=True,
        plant=together(
            filled("model.layers.1.self_attn.q_proj.bias", to=16.0, at=_SLOWEST_OF_EACH),
            filled("model.layers.1.self_attn.k_proj.bias", to=-16.0, at=_SLOWEST_OF_EACH),
        ),
    ),
)

_WEIGHTS = (
    PlantedFault(
        name="llama-weight",
        architecture="llama",
        mechanism=Mechanism.WEIGHTS,
        module="model.layers.1.mlp.down_proj",
        layer=1,
        op="aten.mm",
        file="modeling_llama.py",
        scope="LlamaMLP",
        code=_GATED,
        plant=filled("model.layers.1.mlp.down_proj", to=70_000.0, at=(0, 0)),
    ),
    PlantedFault(
        name="opt-weight",
        architecture="opt",
        mechanism=Mechanism.WEIGHTS,
        module="model.decoder.layers.1.self_attn_layer_norm",
        layer=1,
        op="aten.native_layer_norm",
        file="modeling_opt.py",
        scope="OPTDecoderLayer",
        code="hidden_states = self.self_attn_layer_norm(hidden_states)",
        plant=filled("model.decoder.layers.1.self_attn_layer_norm", to=70_000.0, at=3),
    ),
)

FAULTS: tuple[PlantedFault, ...] = (
    *_SCORES,
    *_PRODUCTS,
    *_OUTPUTS,
    *_RESIDUALS,
    *_PROJECTIONS,
    *_NORMS,
    *_ENDS,
    *_ABSORBED,
    *_MASKS,
    *_WEIGHTS,
)

PINNED: Mapping[str, str] = {
    "qwen3_moe-output": "the tested transformers has this name for the operation of its experts",
    **{fault.name: tiny_models.PINNED["t5"] for fault in FAULTS if fault.architecture == "t5"},
}
"""Faults that other libraries show at another operation, or have no configuration for."""


def planted(
    faults: Iterable[PlantedFault], *, unpinned: Collection[str] = ()
) -> list[ParameterSet]:
    """The faults as cases for ``parametrize``, those of ``PINNED`` marked.

    ``unpinned`` are names of which the test holds with any libraries.
    """
    reasons = {name: reason for name, reason in PINNED.items() if name not in unpinned}
    return [pytest.param(fault, marks=marks(fault.name, reasons)) for fault in faults]


def main() -> None:
    """Prints a line per fault: what the oracle finds, and whether the catalogue says the same."""
    transformers.logging.disable_progress_bar()
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            planted_checkpoint(fault, Path(folder))
            found = first_fault(*loaded(fault, Path(folder)), fault_inputs(fault))
        sys.stdout.write(f"{fault.name:26} {fault.mechanism:17}{_answer(fault, found)}\n")


def loaded(fault: PlantedFault, folder: Path) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The checkpoint in float32 and in the fault's dtype, with its attention implementation."""
    architecture = type(tiny(fault.architecture, num_layers=1))
    reference, subject = (
        architecture.from_pretrained(
            folder, dtype=dtype, attn_implementation=fault.attn_implementation
        )
        for dtype in (torch.float32, getattr(torch, fault.dtype))
    )
    return reference, subject


def _answer(fault: PlantedFault, found: FirstFault | None) -> str:
    if found is None:
        return "NOT FOUND"
    answer = (found.module, found.op, found.source, found.absorbed)
    is_right = answer == (fault.module, fault.op, fault.source, fault.absorbed)
    return (
        f"{'ok ' if is_right else 'NOT'} {found.module} {found.op} {found.source}"
        f"{' absorbed' if found.absorbed else ''} needs {found.reference_abs_max:.3g}: {found.code}"
    )


if __name__ == "__main__":
    main()
