"""Watching a live model: names the first producer of a real ``generate``, and leaves nothing."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, T5ForConditionalGeneration

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.errors import UnsupportedModelError, UsageError
from precheck.records.mechanism import Mechanism
from precheck.records.traces import Section
from tests.planted import FAULTS, fault_inputs, planted_model
from tests.tiny_models import TINY, architectures, tiny, tiny_inputs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FINE = "The user asked for a story"
LATER = "Once upon a time there"
"""Greedy decoding writes a digit after a few words, and digits trigger the fault."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("live")
    built = {}
    for name in ("gemma-prompt", "qwen2-eager", "gemma3-residual", "left-padding"):
        built[name] = folder / name
        built[name].mkdir()
        GALLERY[name].build(built[name])
    return built


def loaded(folder: Path, **settings: Any) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float16, **settings})
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def test_names_the_operation_that_breaks_the_prompt(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["qwen2-eager"], attn_implementation="eager")
    with precheck.watch(model) as watch:
        model.generate(**tokenizer("Hello", return_tensors="pt"), max_new_tokens=3, do_sample=False)
    first = watch.first_overflow
    assert first is not None
    assert (first.module, first.op, first.layer) == ("model.layers.3.self_attn", "aten.bmm", 3)
    assert first.mechanism is Mechanism.ATTENTION_SCORES
    assert first.source.startswith("modeling_qwen2.py:")
    assert "torch.matmul(query, key_states" in first.code
    assert first.limit == 65504
    assert watch.broken_forward == 0
    assert watch.num_forwards == 3
    assert watch.is_origin


def test_a_watch_says_in_a_line_what_it_saw(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["qwen2-eager"], attn_implementation="sdpa")
    inputs = tokenizer("Hello", return_tensors="pt")
    with precheck.watch(model, sample_every=2) as sound:
        model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert repr(sound) == "<precheck watch on Qwen2ForCausalLM: 2 forwards watched, no overflow>"
    broken, _ = loaded(folders["qwen2-eager"], attn_implementation="eager")
    with precheck.watch(broken) as watch:
        broken.generate(**inputs, max_new_tokens=3, do_sample=False)
    first = watch.first_overflow
    assert first is not None
    assert repr(watch) == (
        "<precheck watch on Qwen2ForCausalLM: 1 forward watched, overflow of the raw attention "
        "scores (QK^T before scaling) in 'model.layers.3.self_attn', "
        f"aten.bmm at {first.source}>"
    )


@pytest.mark.parametrize("part", ["model", "layers"])
def test_what_is_compiled_is_watched_uncompiled(folders: dict[str, Path], part: str) -> None:
    model, tokenizer = loaded(folders["qwen2-eager"], attn_implementation="eager")
    compiled: Any = model
    if part == "model":
        compiled = torch.compile(model, backend="eager")
    else:
        for layer in model.model.layers:
            layer.compile(backend="eager")
    with torch.no_grad(), precheck.watch(model) as watch:
        compiled(**tokenizer("Hello", return_tensors="pt"))
    assert watch.first_overflow is not None
    assert watch.first_overflow.module == "model.layers.3.self_attn"
    assert compiler_stance() == "default"


def compiler_stance() -> str:
    """What torch's compiler does now."""
    return str(torch._dynamo.eval_frame._stance.stance)  # noqa: SLF001


def test_a_failure_that_begins_after_some_steps_is_caught_there(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma-prompt"])
    inputs = tokenizer(LATER, return_tensors="pt")
    with precheck.watch(model) as watch:
        written = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    first, step = watch.first_overflow, watch.broken_forward
    assert first is not None
    assert step is not None
    assert step > 1
    assert first.mechanism is Mechanism.GATED_PRODUCT
    assert first.module == "model.layers.3.mlp"
    # the token that the broken forward was given, counted from the start of the text
    at = inputs["input_ids"].shape[1] + step - 1
    assert first.first_positions == {"row 0": at}
    assert tokenizer.decode(written[0, at]).strip().isdigit()
    with precheck.watch(model) as healthy:
        model.generate(**tokenizer(FINE, return_tensors="pt"), max_new_tokens=4, do_sample=False)
    assert healthy.first_overflow is None


def test_sampling_errors_pass_through_and_the_watch_still_knows(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma3-residual"])
    inputs = tokenizer("Hello", return_tensors="pt")
    hooks = _num_hooks(model)
    watch = precheck.watch(model)
    with pytest.raises(RuntimeError, match="probability tensor"), watch:
        model.generate(**inputs, max_new_tokens=3, do_sample=True)
    assert watch.first_overflow is not None
    assert watch.first_overflow.mechanism is Mechanism.RESIDUAL
    assert watch.first_overflow.layer == 1
    assert _num_hooks(model) == hooks


def test_a_padded_batch_is_judged_by_its_real_tokens(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["left-padding"], attn_implementation="eager")
    tokenizer.padding_side = "left"
    texts = ["Yes", "The weather was good today, so we went to the park"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with precheck.watch(model) as watch:
        model.generate(**batch, max_new_tokens=2, do_sample=False)
    first = watch.first_overflow
    assert first is not None
    # NaN reaches the padded row's real token one layer after the softmax made it at its padding
    assert (first.layer, first.op) == (3, "aten._softmax")
    assert watch.is_origin
    with precheck.watch(model) as unpadded:
        model.generate(**tokenizer(texts[1], return_tensors="pt"), max_new_tokens=2)
    assert unpadded.first_overflow is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize(
    "name", architectures(["qwen2", "gemma2", "mixtral", "gpt2", "t5"], unpinned=["gemma2"])
)
def test_watched_outputs_are_the_bits_of_unwatched_ones(name: str, mode: Any) -> None:
    model, inputs = tiny(name), tiny_inputs(name)
    with mode():
        plain = model(**inputs).logits
        with precheck.watch(model) as watch:
            watched = model(**inputs).logits
    assert torch.equal(plain, watched)
    assert watch.first_overflow is None
    assert watch.num_forwards == 1


@pytest.mark.parametrize("name", architectures(TINY))
def test_healthy_models_are_silent_in_half_precision_with_padding(name: str) -> None:
    model: Any = tiny(name)
    model = model.to(torch.bfloat16)
    inputs = tiny_inputs(name, left_padded=True)
    with torch.no_grad(), precheck.watch(model) as watch:
        model(**inputs)
    assert watch.first_overflow is None


@pytest.mark.pinned("the operations that break are those of the tested libraries")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_names_what_a_scan_names(fault: Any) -> None:
    """Planted faults that reach the output; what is absorbed, no watch can know."""
    model: Any = planted_model(fault)
    model = model.to(getattr(torch, fault.dtype))
    if hasattr(model, "set_attn_implementation"):
        model.set_attn_implementation(fault.attn_implementation)
    inputs = fault_inputs(fault)
    with torch.no_grad(), precheck.watch(model) as watch:
        output = model(**inputs)
    logits = getattr(output, "logits", None)
    if fault.absorbed or logits is None:
        return
    mask = inputs.get("attention_mask")
    real = logits if mask is None or logits.dim() != 3 else logits[mask.bool()]
    if bool(real.isfinite().all()):
        return
    assert watch.first_overflow is not None
    assert watch.is_origin
    named = {(overflow.module, overflow.op) for overflow in watch.overflows}
    assert (fault.module, fault.op) in named or fault.op.endswith("_to_copy")


def test_inference_mode_sees_whole_operations_and_names_them(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma-prompt"])
    with torch.inference_mode(), precheck.watch(model) as watch:
        model(**tokenizer("12", return_tensors="pt"))
    assert watch.first_overflow is not None
    assert watch.first_overflow.mechanism is Mechanism.GATED_PRODUCT


def test_watches_nest(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma-prompt"])
    hooks = _num_hooks(model)
    inputs = tokenizer("12", return_tensors="pt")
    with torch.no_grad(), precheck.watch(model) as outer:
        with precheck.watch(model) as inner:
            model(**inputs)
        assert _num_hooks(model) > hooks
        model(**inputs)
    assert inner.first_overflow == outer.first_overflow
    assert inner.first_overflow is not None
    assert (inner.num_forwards, outer.num_forwards) == (1, 2)
    assert _num_hooks(model) == hooks


def test_a_forward_that_raises_leaves_nothing_behind() -> None:
    model, inputs = tiny("qwen2"), tiny_inputs("qwen2")
    hooks = _num_hooks(model)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("inside")

    handle = model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError), precheck.watch(model) as watch:
        model(**inputs)
    handle.remove()
    assert _num_hooks(model) == hooks
    assert watch.num_forwards == 1
    with precheck.watch(model) as again:
        model(**inputs)
    assert again.first_overflow is None


def test_a_sampled_watch_looks_at_every_kth_forward(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma-prompt"])
    fine, broken = (tokenizer(text, return_tensors="pt") for text in (FINE, "12"))
    with torch.no_grad(), precheck.watch(model, sample_every=3) as watch:
        for inputs in (fine, broken, broken, broken):
            model(**inputs)
    assert (watch.broken_forward, watch.num_forwards) == (3, 4)
    with torch.no_grad(), precheck.watch(model, sample_every=3) as missed:
        for inputs in (fine, broken, broken):
            model(**inputs)
    assert missed.first_overflow is None


def test_a_sampled_watch_that_finds_only_traces_says_so(folders: dict[str, Path]) -> None:
    model, tokenizer = loaded(folders["gemma-prompt"])
    inputs = tokenizer("The number 1", return_tensors="pt")
    with torch.no_grad(), precheck.watch(model, sample_every=2) as watch:
        fine = model(**tokenizer(FINE, return_tensors="pt"), use_cache=True)
        cache = model(**inputs, use_cache=True).past_key_values  # breaks, unseen
        model(input_ids=inputs["input_ids"][:, :1], past_key_values=cache)
    assert fine.logits.isfinite().all()
    assert watch.first_overflow is not None
    assert not watch.is_origin


def test_an_encoder_that_generate_calls_by_itself_is_watched(tmp_path: Path) -> None:
    GALLERY["t5-half"].build(tmp_path)
    model: Any = T5ForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.float16, attn_implementation="eager"
    )
    attention = model.encoder.block[2].layer[0].SelfAttention
    with torch.no_grad():  # inf is clamped in T5, NaN is not
        attention.q.weight.mul_(3000)
        attention.k.weight.mul_(3000)
    ids = AutoTokenizer.from_pretrained(tmp_path)("Hello you", return_tensors="pt")
    with precheck.watch(model) as watch:
        model.generate(**ids, max_new_tokens=2, do_sample=False)
    first = watch.first_overflow
    assert first is not None
    assert (first.section, first.layer) == (Section.ENCODER, 2)
    assert first.module.startswith("encoder.block.2.layer.0.SelfAttention")
    assert watch.broken_forward == 0


def test_bad_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="sample_every is 0"):
        precheck.watch(tiny("qwen2"), sample_every=0)
    with pytest.raises(UnsupportedModelError):
        precheck.watch(torch.nn.Linear(2, 2))


def _num_hooks(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks)  # noqa: SLF001  no public count
        for module in model.modules()
    )


def patches_of_gemma4() -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny Gemma 4 unified, whose patches pass one linear layer, and a text with an image."""
    gemma4 = pytest.importorskip("transformers.models.gemma4_unified.modeling_gemma4_unified")
    size, length = 32, 9
    text = gemma4.Gemma4UnifiedTextConfig(
        vocab_size=700,
        hidden_size=size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
    )
    vision = gemma4.Gemma4UnifiedVisionConfig(
        mm_embed_dim=size, output_proj_dims=size, mm_posemb_size=64
    )
    model = gemma4.Gemma4UnifiedForConditionalGeneration(
        gemma4.Gemma4UnifiedConfig(text_config=text, vision_config=vision, image_token_id=640)
    )
    ids = torch.tensor([[5, *[640] * length, 7, 8]])
    places = torch.arange(length)
    patch = model.get_submodule("model.embed_vision.patch_dense")
    return model, {
        "input_ids": ids,
        "pixel_values": torch.rand(1, length, patch.in_features),
        "image_position_ids": torch.stack([places % 3, places // 3], -1)[None],
        "mm_token_type_ids": (ids == 640).long(),
    }


def pixels_of_llava() -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny LLaVA, whose tower takes ``(batch, channels, height, width)``, and an image."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
        ),
        text_config=transformers.LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
        ),
        image_token_index=63,
        vision_feature_layer=-1,
    )
    ids = torch.tensor([[5, *[63] * 4, 7]])
    pixels = torch.rand(1, 3, 8, 8)
    return transformers.LlavaForConditionalGeneration(config), {
        "input_ids": ids,
        "pixel_values": pixels,
    }


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (patches_of_gemma4, "embed_vision.patch_dense"),
        (pixels_of_llava, "patch_embedding"),
    ],
    ids=["linear", "convolution"],
)
@pytest.mark.parametrize("is_planted", [True, False])
def test_pixels_enter_by_a_projection_that_is_no_part_of_a_layer(
    build: Any, module: str, *, is_planted: bool
) -> None:
    torch.manual_seed(0)
    model, inputs = build()
    (name,) = (name for name, _ in model.named_modules() if name.endswith(module))
    if is_planted:
        with torch.no_grad():
            # not all of a row: what comes out of a norm sums to nothing
            model.get_submodule(name).weight[1, ::2] = 30_000.0
    model = model.half().eval()
    inputs["pixel_values"] = inputs["pixel_values"].half()
    with torch.no_grad(), precheck.watch(model) as watch:
        model(**inputs)
    found = watch.first_overflow
    if not is_planted:
        assert found is None
        return
    assert found is not None
    assert (found.module, found.layer) == (name, None)
    assert found.mechanism is Mechanism.PROJECTION


@pytest.mark.parametrize(
    "copied",
    [deepcopy, copy, lambda model: pickle.loads(pickle.dumps(model))],  # noqa: S301  our own
    ids=["deepcopy", "copy", "pickle"],
)
def test_a_copy_made_while_it_is_watched_is_not_watched(copied: Callable[[Any], Any]) -> None:
    model = tiny("qwen2", num_layers=2)
    ids = torch.tensor([[1, 2, 3]])
    with precheck.watch(model) as watch, torch.no_grad():
        twin = copied(model)
        if copied is not copy:  # which shares the modules inside
            twin(ids)
            assert watch.num_forwards == 0
        expected = model(ids).logits
        assert watch.num_forwards == 1
    with torch.no_grad():
        assert torch.equal(twin(ids).logits, expected)
        assert torch.equal(deepcopy(twin)(ids).logits, expected)
    assert watch.num_forwards == 1
