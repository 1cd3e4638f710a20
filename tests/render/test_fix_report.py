"""What ``precheck fix`` prints, and its section of a model card, of one hand-made fix."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from precheck.records.finding import Verdict
from precheck.records.outcomes.fix import (
    Exactness,
    Extent,
    Factor,
    Fix,
    Float32Recipe,
    MechanismHeadroom,
    OpHeadroom,
    Proof,
    ProofRun,
    Remedy,
    SettingChange,
)
from precheck.records.precision import Dtype
from precheck.render.screens.fix import render_fix, render_fix_card
from tests.render.evil import EVIL
from tests.render.test_console import assert_golden
from tests.render.wide import too_wide

if TYPE_CHECKING:
    from collections.abc import Iterable


def run(checkpoint: str, dtype: Dtype, kl: float | None, *, verdict: Verdict) -> ProofRun:
    return ProofRun(
        checkpoint=checkpoint,
        dtype=dtype,
        attn_implementation="sdpa",
        verdict=verdict,
        kl_divergence_mean=kl,
        top1_agreement=None if kl is None else 1.0 - 10 * kl,
        max_logit_difference=None if kl is None else 100 * kl,
        is_identical=kl == 0,
        greedy="!!!!!!!!" if kl is None else "Paris, and",
    )


RUNS = (
    run("original", Dtype.FLOAT32, 0.0, verdict=Verdict.SAFE),
    run("original", Dtype.FLOAT16, None, verdict=Verdict.OVERFLOW),
    run("original", Dtype.BFLOAT16, 4.6e-4, verdict=Verdict.SAFE),
    run("fixed", Dtype.FLOAT32, 0.0, verdict=Verdict.SAFE),
    run("fixed", Dtype.FLOAT16, 6.4e-6, verdict=Verdict.SAFE),
)
FIX = Fix(
    precheck_version="0.1.0",
    model="google/gemma-3-4b-it",
    revision="093f9f3",
    dtype=Dtype.FLOAT16,
    attn_implementation="sdpa",
    remedy=Remedy.RESCALING,
    sentence="rescaled, and runs in float16",
    headroom_bits=2.0,
    factors=(
        Factor(parameter="model.embed_tokens.weight", power=-4),
        Factor(
            parameter="model.layers.0.mlp.gate_up_proj",
            power=-4,
            block=(Extent(dim=-2, start=8, stop=16),),
        ),
        Factor(parameter="model.layers.0.post_feedforward_layernorm.weight", power=-4, shift=1.0),
        Factor(parameter="model.norm.weight", power=4, shift=1.0),
    ),
    settings=(SettingChange(name="rms_norm_eps", before=1e-6, after=3.90625e-9),),
    rooms=(
        OpHeadroom(
            module="model.layers.4",
            op="aten.add",
            source="modeling_gemma3.py:416",
            abs_max=200_028.0,
            before_bits=-1.6,
            after_bits=2.4,
        ),
    ),
    proof=Proof(
        holds=True,
        exactness=Exactness.EXACT,
        objections=(),
        num_tokens=533,
        runs=RUNS,
        headroom=(
            MechanismHeadroom(mechanism="residual", before_bits=-0.9, after_bits=2.4),
            MechanismHeadroom(mechanism="gated_product", before_bits=10.0, after_bits=None),
        ),
        num_changed=510_592,
        num_became_zero=12,
        num_became_subnormal=6_100,
    ),
)


def with_proof(exactness: Exactness, *objections: str) -> Fix:
    assert FIX.proof is not None
    proof = replace(
        FIX.proof, holds=not objections, exactness=exactness, objections=tuple(objections)
    )
    return replace(FIX, proof=proof, remedy=Remedy.NONE if objections else FIX.remedy)


assert FIX.proof is not None
RECIPE = replace(
    FIX,
    proof=replace(FIX.proof, exactness=None, headroom=()),
    remedy=Remedy.FLOAT32_MODULES,
    factors=(),
    settings=(),
    reasons=("no exact rescaling brings it into range:", "lm_head reaches 343,707"),
    recipe=Float32Recipe(
        model="m",
        dtype=Dtype.FLOAT16,
        attn_implementation="sdpa",
        modules=("lm_head",),
        num_bytes=4096,
    ),
)


@pytest.mark.parametrize("width", [80, 200])
def test_a_fix_is_shown_as_it_was_last_approved(width: int) -> None:
    assert_golden(render_fix(FIX, output="fixed", width=width, colour=False), f"fix-{width}.txt")


def test_its_section_of_the_model_card_is_as_it_was_last_approved() -> None:
    assert_golden(render_fix_card(FIX), "fix.card.md")


STORIES = {
    "fixed": FIX,
    "recipe": RECIPE,
    "not proved": with_proof(Exactness.EPSILONS, "float32 differs from the original by 0.6 nat"),
    "approximate": with_proof(Exactness.APPROXIMATE),
    "nothing to do": replace(
        FIX, remedy=Remedy.NOTHING, sentence="it runs", factors=(), rooms=(), proof=None
    ),
}


@pytest.mark.parametrize("width", [40, 60, 80, 100])
@pytest.mark.parametrize("story", STORIES)
def test_no_line_is_wider_than_the_terminal(story: str, width: int) -> None:
    text = render_fix(STORIES[story], output="fixed", width=width, colour=False)
    assert too_wide(text, width=width) == []


def test_the_first_line_says_whether_it_runs() -> None:
    first = {
        name: render_fix(each, output="fixed", width=80, colour=False)[0]
        for name, each in STORIES.items()
    }
    assert {name for name, mark in first.items() if mark == "✗"} == {"not proved"}


def lines_of(fix: Fix, *, output: str | None = "fixed") -> list[str]:
    return render_fix(fix, output=output, width=200, colour=False).splitlines()


def test_it_ends_with_what_was_written_and_the_next_command() -> None:
    ends = {name: lines_of(each)[-2:] for name, each in STORIES.items()}
    assert ends["fixed"] == [
        "wrote fixed: load it like the original",
        "next: precheck scan fixed --require float16+sdpa",
    ]
    assert ends["recipe"] == [
        "wrote fixed/precheck-recipe.json",
        "next: precheck.apply(model, 'fixed/precheck-recipe.json'), in Python",
    ]
    assert ends["not proved"][-1] == ends["nothing to do"][-1] == "nothing was written"
    prediction = replace(FIX, proof=None, dtype=Dtype.BFLOAT16, model="my model")
    assert lines_of(prediction, output=None)[-2:] == [
        "nothing was written (--dry-run)",
        "next: precheck fix 'my model' --for bfloat16 -o DIR",
    ]
    assert lines_of(prediction)[0][0] == "?"


def test_float32_is_spoken_of_only_where_it_was_run() -> None:
    assert "in float32 it gives" not in "\n".join(lines_of(RECIPE))
    refused = "\n".join(lines_of(with_proof(Exactness.ROUNDED, "float32 differs by 0.6 nat")))
    assert "in float32 it gives" not in refused
    assert refused.count("float32 differs by 0.6 nat") == 1


def test_settings_alone_are_changes_too() -> None:
    lines = lines_of(replace(FIX, factors=(), proof=None))
    assert "  rms_norm_eps 1e-06 -> 3.90625e-09" in lines
    assert any("model.layers.4" in line for line in lines)


def test_media_and_readings_have_rows_of_their_own() -> None:
    assert FIX.proof is not None
    more = (replace(RUNS[-1], medium="image"), replace(RUNS[-1], is_tied=True))
    fix = replace(FIX, proof=replace(FIX.proof, runs=(*RUNS, *more)), notes=("one thing",))
    text = "\n".join(lines_of(fix))
    assert "fixed float16 + sdpa with images" in text
    assert "fixed float16 + sdpa, tied" in text
    assert "  note: one thing" in text
    assert "| fixed, float16 with images |" in render_fix_card(fix)
    assert "- one thing" in render_fix_card(fix)


def evil() -> Iterable[Fix]:
    yield replace(FIX, model=EVIL, sentence=EVIL, reasons=(EVIL,))
    yield replace(FIX, factors=(Factor(parameter=EVIL, power=-4),))
    yield replace(FIX, settings=(SettingChange(name=EVIL, before=1.0, after=2.0),))
    yield replace(FIX, rooms=(replace(FIX.rooms[0], module=EVIL, op=EVIL, source=EVIL),))
    assert FIX.proof is not None
    runs = tuple(replace(each, greedy=EVIL, attn_implementation=EVIL) for each in RUNS)
    yield replace(FIX, proof=replace(FIX.proof, runs=runs, objections=(EVIL,)))


def test_text_from_a_checkpoint_stays_text() -> None:
    for each in evil():
        for width in (80, 200):
            text = render_fix(each, output="fixed", width=width, colour=False)
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", text)
        card = render_fix_card(each)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\udc80]", card)
        for line in card.splitlines():
            assert not re.search(r"(?<!\\)<script", line.partition("`")[0])


def test_a_recipe_survives_its_file() -> None:
    assert RECIPE.recipe is not None
    assert Float32Recipe.from_dict(RECIPE.recipe.to_dict()) == RECIPE.recipe
