"""Checkpoints that break in float16 and are made to run in it, and those that cannot be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import precheck
from precheck.cure.fix import FixRequest, fix
from precheck.errors import ReportError, UsageError
from precheck.records.outcomes.fix import Exactness, Remedy
from precheck.records.precision import Dtype
from tests.cure.survey import fixed
from tests.custom_models import Custom, save_custom
from tests.tiny_models import save_checkpoint, tiny, tiny_config, tiny_inputs, tiny_of

if TYPE_CHECKING:
    from precheck.records.outcomes.fix import Fix, ProofRun


def run_of(outcome: Fix, checkpoint: str, dtype: Dtype) -> ProofRun:
    assert outcome.proof is not None
    runs = outcome.proof.runs
    return next(run for run in runs if (run.checkpoint, run.dtype) == (checkpoint, dtype))


def logits(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """By transformers alone."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.no_grad():
        result: torch.Tensor = model(**tiny_inputs("llama")).logits
    return result


def kl_divergence(reference: torch.Tensor, measured: torch.Tensor) -> float:
    p, q = (tensor.double().log_softmax(dim=-1) for tensor in (reference, measured))
    return float((p.exp() * (p - q)).sum(dim=-1).mean())


EXACT = (
    ("Llama", "residual"),
    ("Qwen2, tied", "residual"),
    ("Qwen3-MoE", "product"),
    ("Phi-3", "product"),
    ("GPT-2", "residual"),
    ("Gemma 3", "MLP output"),
)
"""One of each kind; ``make fixes`` does all."""


@pytest.mark.parametrize(("architecture", "fault"), EXACT)
def test_a_rescaled_checkpoint_is_the_same_model(
    architecture: str, fault: str, tmp_path: Path
) -> None:
    outcome = fixed(architecture, fault, tmp_path)
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert outcome.proof is not None
    assert outcome.proof.exactness is Exactness.EXACT
    # what precheck says of it is true of plain transformers too
    exact = logits(tmp_path / "model", torch.float32)
    assert torch.equal(logits(tmp_path / "fixed", torch.float32), exact)
    assert not bool(logits(tmp_path / "model", torch.float16).isfinite().all())
    fixed_float16 = kl_divergence(exact, logits(tmp_path / "fixed", torch.float16))
    original_bfloat16 = kl_divergence(exact, logits(tmp_path / "model", torch.bfloat16))
    assert 0 <= fixed_float16 < original_bfloat16 / 8
    written = json.loads((tmp_path / "fixed/precheck-fix.json").read_text())
    assert written == json.loads(json.dumps(outcome.to_dict()))
    before = json.loads((tmp_path / "model/config.json").read_text())
    after = json.loads((tmp_path / "fixed/config.json").read_text())
    changed = {key for key in before if after[key] != before[key]}
    assert changed == {"dtype", *(setting.name for setting in outcome.settings)}
    assert set(load_file(tmp_path / "fixed/model.safetensors")) == set(
        load_file(tmp_path / "model/model.safetensors")
    )


def test_norms_of_one_plus_w_are_rounded(tmp_path: Path) -> None:
    outcome = fixed("Gemma 3", "residual", tmp_path)
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert any(factor.shift == 1.0 for factor in outcome.factors)
    exact = logits(tmp_path / "model", torch.float32)
    assert kl_divergence(exact, logits(tmp_path / "fixed", torch.float32)) < 1e-9
    assert bool(logits(tmp_path / "fixed", torch.float16).isfinite().all())


def ten_lines() -> str:
    page = Path(__file__).parents[2] / "docs" / "fix.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = (text for text in blocks if "tree_map" in text)
    return str(block)


def test_a_recipe_where_epsilons_are_not_in_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = fixed("OPT", "MLP output", tmp_path)
    assert (outcome.remedy, outcome.holds) == (Remedy.FLOAT32_MODULES, True)
    assert outcome.recipe is not None
    assert "model.decoder.layers.1.fc2" in outcome.recipe.modules
    file = tmp_path / "fixed/precheck-recipe.json"
    assert list((tmp_path / "fixed").iterdir()) == [file]
    exact = logits(tmp_path / "model", torch.float32)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float16
    )
    with torch.no_grad():
        assert not bool(model(**tiny_inputs("opt")).logits.isfinite().all())
        plain = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", dtype=torch.float16
        )
        precheck.apply(model, file)
        applied = model(**tiny_inputs("opt")).logits
        assert kl_divergence(exact, applied) < 1e-4
        # the page's lines do the same without precheck
        monkeypatch.chdir(tmp_path)
        exec(ten_lines(), {"model": plain})  # noqa: S102  our own documentation
        assert torch.equal(plain(**tiny_inputs("opt")).logits, applied)
    kept = {name for name, tensor in model.named_parameters() if tensor.dtype is torch.float32}
    assert {name.rpartition(".")[0] for name in kept} == set(outcome.recipe.modules)
    refuses_what_it_is_not_for(file, tmp_path / "model")


def refuses_what_it_is_not_for(recipe: Path, model: Path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    with pytest.raises(UsageError, match="the model is in float32"):
        precheck.apply(load(model), recipe)
    with pytest.raises(UsageError, match="no such module with parameters"):
        precheck.apply(tiny("llama").half(), recipe)
    for content in ('{"schema": "precheck/1"}', "[]"):
        recipe.write_text(content)
        with pytest.raises(ReportError, match="not a precheck recipe"):
            precheck.apply(tiny("llama").half(), recipe)


def test_scores_where_the_config_has_their_scale(tmp_path: Path) -> None:
    """Gemma 2 without its softcap; its class has eager attention alone."""
    config: Any = tiny_config("gemma2")
    config.attn_logit_softcapping, config.query_pre_attn_scalar = None, 256
    model: Any = tiny_of(config)
    attention = model.model.layers[1].self_attn
    with torch.no_grad():
        for projection in (attention.q_proj, attention.k_proj):
            projection.weight.mul_(150.0)
    save_checkpoint(model, tmp_path / "model", tokenizer=True)
    outcome = fix(
        str(tmp_path / "model"),
        tmp_path / "fixed",
        request=FixRequest(),
        observe=lambda _: None,
    )
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert [(setting.name, setting.before, setting.after) for setting in outcome.settings] == [
        ("query_pre_attn_scalar", 256, 1)
    ]
    assert outcome.proof is not None
    assert outcome.proof.exactness is Exactness.EXACT


READERS = {
    "a reader without a norm": (
        "hidden_states = hidden_states + 1e-4 * torch.tanh(hidden_states)",
        "aten.tanh at modeling_mine.py",
        "does not pass a factor on",
    ),
    "an input of every layer": (
        "hidden_states = hidden_states + torch.linspace(0, 1, 32).to(hidden_states)",
        "aten.add at modeling_mine.py",
        "a constant that is not scaled is added to it",
    ),
    "a clamp": (
        "hidden_states = hidden_states.clamp(-60000.0, 60000.0) + 0.5 * hidden_states",
        "aten.clamp at modeling_mine.py",
        "clamped to a constant",
    ),
}


@pytest.fixture
def own_modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """transformers copies the code of a checkpoint before it runs it."""
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )


def fix_custom(custom: Custom, folder: Path, **request: Any) -> Fix:
    return fix(
        str(save_custom(custom, folder / "model", planted=True)),
        folder / "fixed",
        request=FixRequest(trust_remote_code=True, **request),
        observe=lambda _: None,
    )


@pytest.mark.usefixtures("own_modules")
@pytest.mark.parametrize("name", READERS)
def test_what_breaks_invariance_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    code, where, reason = READERS[name]
    # an epsilon that does not matter, so that nothing else is in the way
    custom = Custom(block_init="self.norm.eps = 1e-12", block_before=code)
    outcome = fix_custom(custom, tmp_path)
    assert outcome.remedy is not Remedy.RESCALING
    (sentence,) = (text for text in outcome.reasons if reason in text)
    assert where in sentence
    assert "body.blocks.0" in sentence
    assert not (tmp_path / "fixed/model.safetensors").exists()


@pytest.mark.usefixtures("own_modules")
def test_without_such_a_reader_the_same_model_is_rescaled(tmp_path: Path) -> None:
    outcome = fix_custom(Custom(block_init="self.norm.eps = 1e-12"), tmp_path)
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert outcome.proof is not None
    assert outcome.proof.exactness in {Exactness.EPSILONS, Exactness.EXACT}


@pytest.mark.usefixtures("own_modules")
def test_approximate_if_that_is_allowed_and_proved(tmp_path: Path) -> None:
    code = READERS["a reader without a norm"][0]
    custom = Custom(block_init="self.norm.eps = 1e-12", block_before=code)
    outcome = fix_custom(custom, tmp_path, may_break=True)
    assert (outcome.remedy, outcome.holds) == (Remedy.RESCALING, True)
    assert outcome.proof is not None
    assert outcome.proof.exactness is Exactness.APPROXIMATE
    assert 0 < (run_of(outcome, "fixed", Dtype.FLOAT32).kl_divergence_mean or 0) < 1e-4


@pytest.mark.usefixtures("own_modules")
def test_what_cannot_be_traced_gets_a_recipe(tmp_path: Path) -> None:
    custom = Custom(
        block_before="hidden_states = hidden_states if float(hidden_states.max()) else 0"
    )
    outcome = fix_custom(custom, tmp_path)
    assert outcome.remedy is Remedy.FLOAT32_MODULES
    assert "depend on values" in outcome.reasons[1]
