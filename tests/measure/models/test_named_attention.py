"""The attention that a config names: what a plain ``from_pretrained`` runs is what is measured."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import transformers

from precheck import scan
from precheck.checkpoint import gallery
from precheck.checkpoint.source import open_checkpoint
from precheck.errors import ExitCode
from precheck.judge.gate import FailOn, gate
from precheck.measure.models.attention import attention_of
from precheck.measure.models.resident import ResidentModels
from precheck.measure.models.streamed import StreamedModels
from precheck.records.attention import as_argument, spelled
from precheck.records.finding import Verdict
from precheck.records.precision import Dtype
from tests.shell import change_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from tests.shell import Shell

KEYS = ("attn_implementation", "_attn_implementation")


@pytest.fixture
def eager_breaks(tmp_path: Path) -> Path:
    """The built-in model that loses its accuracy in bfloat16 with eager attention only."""
    folder = tmp_path / "model"
    shutil.copytree(gallery.saved("qwen2-eager"), folder)
    return folder


@pytest.fixture
def with_images(tmp_path: Path) -> Path:
    """A model with a config for each of its two parts."""
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def in_use(model: nn.Module) -> dict[str, str]:
    """The attention of every module that is no whole model, by name."""
    return {
        name: attention_of(module)
        for name, module in model.named_modules()
        if hasattr(module, "config") and not isinstance(module, transformers.PreTrainedModel)
    }


@pytest.mark.parametrize("key", KEYS)
def test_the_gate_is_about_the_attention_that_the_config_names(
    eager_breaks: Path, key: str
) -> None:
    as_it_is = scan(eager_breaks, dtypes=["bfloat16"], quick=True)
    assert gate(as_it_is, fail_on=FailOn.ERROR).holds

    change_config(eager_breaks, **{key: "eager"})
    plain = transformers.AutoModelForCausalLM.from_pretrained(eager_breaks, dtype="auto")
    report = scan(eager_breaks, dtypes=["bfloat16"], quick=True)
    assert report.model.default_attn_implementation == attention_of(plain) == "eager"
    assert {run.attn_implementation for run in report.runs} == {"eager", "sdpa"}  # and the cure
    outcome = gate(report, fail_on=FailOn.ERROR)
    assert not outcome.holds
    assert "bfloat16 + eager" in outcome.reasons[0]
    static = scan(eager_breaks, static=True)
    assert static.model.default_attn_implementation == "eager"


@pytest.mark.parametrize("is_resident", [False, True])
@pytest.mark.parametrize(
    ("named", "name"),
    [
        (None, "sdpa"),
        ("eager", "eager"),
        ({"text_config": "eager"}, "sdpa,text_config:eager"),
        ({"vision_config": "eager"}, "sdpa,vision_config:eager"),
        ({"": "eager"}, "sdpa"),  # nothing attends outside the parts
        ({"text_config": "eager", "vision_config": "eager"}, "eager"),
    ],
)
def test_every_part_attends_as_a_plain_load_makes_it(
    with_images: Path, named: Any, name: str, *, is_resident: bool
) -> None:
    change_config(with_images, attn_implementation=named)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(with_images, dtype="auto")
    checkpoint = open_checkpoint(str(with_images), observe=lambda _: None)
    make = ResidentModels if is_resident else StreamedModels
    models = make(checkpoint, device="cpu")
    try:
        assert models.default_attention() == name
        measured = models.skeleton(Dtype.BFLOAT16, name)
        assert in_use(measured.model) == in_use(plain)
        assert measured.attn_implementation == name
        for uniform in ("eager", "sdpa"):
            assert set(in_use(models.skeleton(Dtype.BFLOAT16, uniform).model).values()) == {uniform}
    finally:
        models.close()


def test_what_a_mixed_model_is_loaded_with_can_be_pasted(with_images: Path) -> None:
    change_config(with_images, attn_implementation={"text_config": "eager"})
    mixed = "sdpa,text_config:eager"
    report = scan(with_images, dtypes=["float32"], attn_implementations=[mixed], quick=True)
    assert report.model.default_attn_implementation == mixed
    (advised, *_) = report.recommendations
    assert advised.attn_implementation == mixed
    argument = advised.snippets["transformers"].partition("attn_implementation=")[2]
    assert argument.startswith('{"": "sdpa", "text_config": "eager"}')


def test_an_attention_that_cannot_be_loaded_here_fails_where_a_plain_load_fails(
    eager_breaks: Path,
) -> None:
    change_config(eager_breaks, attn_implementation="attention_of_tomorrow")
    with pytest.raises(ValueError, match="attention_of_tomorrow"):
        transformers.AutoModelForCausalLM.from_pretrained(eager_breaks, dtype="auto")
    report = scan(eager_breaks, dtypes=["bfloat16"], quick=True)
    assert report.model.default_attn_implementation == "attention_of_tomorrow"
    failed = [run for run in report.runs if run.verdict is Verdict.FAILED]
    assert {run.attn_implementation for run in failed} == {"attention_of_tomorrow"}
    assert "attention_of_tomorrow" in str(failed[0].reason)
    assert {run.attn_implementation for run in report.runs} >= {"sdpa", "eager"}
    assert not gate(report, fail_on=FailOn.ERROR).holds


@pytest.mark.parametrize(
    "named", ["owner/kernel", "owner/kernel:fn", {"text_config": "owner/kernel@v1"}]
)
@pytest.mark.parametrize("within", [None, "text_config"])
def test_a_kernel_of_the_hub_is_code_that_needs_permission(
    shell: Shell, model: Path, named: Any, within: str | None
) -> None:
    setting = {"_attn_implementation": named}
    change_config(model, **(setting if within is None else {within: setting}))
    shell.refuses(
        "model", code=ExitCode.INCOMPLETE, says="'owner/kernel", hint="--trust-remote-code"
    )


def test_an_attention_that_is_no_name_is_refused(shell: Shell, model: Path) -> None:
    change_config(model, attn_implementation=5)
    shell.refuses(
        "model", code=ExitCode.INCOMPLETE, says="attn_implementation is 5", hint="compare"
    )


@pytest.mark.parametrize(
    "attention",
    [
        "eager",
        "owner/kernel:fn",
        {"": "sdpa", "text_config": "eager"},
        {"text_config": {"": "sdpa", "inner_config": "eager"}},
    ],
)
def test_every_spelling_is_read_as_what_it_was_written_for(attention: Any) -> None:
    assert as_argument(spelled(attention)) == attention
