"""What a run takes over from another one is what it would have found itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.measure.bounds.certificates import Certificates
from precheck.measure.bounds.forms import Image, Known
from precheck.measure.bounds.shared import Balls, Result, SharedResults
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.watch.parameters import Parameters
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from tests.measure.bounds.breaking import step_of
from tests.measure.bounds.test_rules import LANES, SIZE, drawn, normed
from tests.measure.bounds.test_whole_models import made

if TYPE_CHECKING:
    from precheck.measure.bounds.step import Step

UNITS = ("model.embed_tokens", "model.layers.0", "model.norm", "lm_head")


def skeleton(name: str, attn: str, change: Any = None) -> Skeleton:
    model = made(name).to(torch.float16)
    with torch.no_grad():
        if change is not None:
            change(model)
    model.set_attn_implementation(attn)
    return Skeleton(
        configuration=Configuration(dtype=Dtype.FLOAT16, attn_implementation=attn),
        model=model,
        requested_attn_implementation=attn,
        parameters=Parameters.of(model),
    )


def bounds(*runs: Skeleton) -> list[dict[Any, float]]:
    certificates = Certificates(runs)
    for unit in UNITS:
        for run in runs:
            certificates.enter(run, unit)
    found = certificates.finished()
    return [dict(found[run.configuration].bounds) for run in runs]


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_a_second_attention_has_the_bounds_that_it_has_alone(name: str) -> None:
    alone = bounds(skeleton(name, "eager"))
    together = bounds(skeleton(name, "sdpa"), skeleton(name, "eager"))
    assert together[1] == alone[0]
    assert len(together[0]) != len(together[1])


def double_gate(model: Any) -> None:
    model.model.layers[0].mlp.gate_proj.weight.mul_(2)


def double_norm(model: Any) -> None:
    model.model.layers[0].post_attention_layernorm.weight.mul_(2)


@pytest.mark.parametrize("change", [double_gate, double_norm])
def test_other_weights_are_not_taken_for_the_same(change: Any) -> None:
    alone = bounds(skeleton("Llama", "eager", change))
    together = bounds(skeleton("Llama", "sdpa"), skeleton("Llama", "eager", change))
    assert together[1] == alone[0]


def test_the_same_norms_of_other_residual_streams_are_one_vector_each() -> None:
    """Each norm of a layer has its own vector, in both runs."""

    def without_scores(model: Any) -> None:
        model.model.layers[0].self_attn.o_proj.weight.zero_()

    alone = bounds(skeleton("Llama", "eager", without_scores))
    together = bounds(skeleton("Llama", "sdpa"), skeleton("Llama", "eager", without_scores))
    assert together[1] == alone[0]


WEIGHT = Known(numbers=drawn(SIZE, LANES, seed=4).float())
TENSOR = normed(scale=drawn(SIZE, seed=1), offset=drawn(SIZE, seed=2))


def num_computed(*tensors: Known) -> int:
    """How many products with one weight are computed, one run for each tensor."""
    shared, computed = SharedResults(), []

    def compute(step: Step) -> Result:
        computed.append(step)
        return Result(TENSOR, 1.0)

    for tensor in tensors:
        step = step_of(torch.ops.aten.mm.default, tensor, WEIGHT, shape=(1, LANES))
        shared.result(step, Balls(), compute)
    return len(computed)


def test_products_of_equal_vectors_are_computed_once() -> None:
    image = TENSOR.image
    assert image is not None
    other = replace(image, rows=replace(image.rows, ball=object()))
    assert num_computed(TENSOR, TENSOR, replace(TENSOR, form=other, identity=object())) == 1


CHANGES: dict[str, Any] = {
    "growth": lambda image: replace(image, growth=2.0),
    "radius": lambda image: replace(image, rows=replace(image.rows, radius=99.0)),
    "centred": lambda image: replace(image, rows=replace(image.rows, is_centred=True)),
    "index": lambda image: replace(image, index=image.index.flip(-1)),
    "scale": lambda image: replace(image, scale=-image.scale),
    "offset": lambda image: replace(image, offset=-image.offset),
    "error": lambda image: replace(image, error=image.error + 1.0),
}


@pytest.mark.parametrize("part", CHANGES)
def test_products_of_vectors_that_differ_are_not_shared(part: str) -> None:
    """Although the magnitudes of their elements are the same."""
    image = TENSOR.form
    assert isinstance(image, Image)
    other = CHANGES[part](replace(image, rows=replace(image.rows, ball=object())))
    assert num_computed(TENSOR, Known(magnitudes=TENSOR.bound, form=other)) == 2
