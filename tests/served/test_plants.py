"""Every planted fault is named, and a healthy server is silent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from precheck.measure.formats.parts import Storing
from precheck.records.configuration import Configuration
from precheck.records.outcomes.served import Served, Told
from precheck.records.precision import Dtype
from precheck.served.request import VerifyRequest
from precheck.served.verify import verify
from tests.served.engines import Engine, serving
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from pathlib import Path

ANOTHER_TEMPLATE = (
    "{% for message in messages %}[INST] {{ message['content'] }} [/INST]{% endfor %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        tiny("qwen2", num_layers=2), tmp_path_factory.mktemp("checkpoint"), tokenizer=True
    )


def verified(engine: Engine, **request: Any) -> Served:
    few = {"dtypes": (Dtype.FLOAT32, Dtype.BFLOAT16), "attn_implementations": ("sdpa",)}
    options: dict[str, Any] = few | {"num_generated": 6} | request
    with serving(engine) as url:
        served = verify(
            url, str(engine.folder), request=VerifyRequest(**options), observe=lambda _: None
        )
    plain = served.to_dict()
    json.dumps(plain, allow_nan=False)
    assert Served.from_dict(plain) == served
    return served


def codes(served: Served) -> list[str]:
    return [finding.code for finding in served.findings]


@pytest.mark.parametrize(
    "configuration",
    ["float32+sdpa", "bfloat16+sdpa", "float16+sdpa", "bfloat16+eager", "float16+eager"],
)
def test_the_configuration_is_named_and_nothing_is_found(folder: Path, configuration: str) -> None:
    runs = Configuration.parse(configuration)
    served = verified(
        Engine(folder=folder, configuration=runs),
        dtypes=tuple(Dtype),
        attn_implementations=("sdpa", "eager"),
    )
    assert codes(served) == []
    assert runs in served.like
    assert {one.dtype for one in served.like} == {runs.dtype}
    assert served.server.told is Told.EVERYWHERE


@pytest.mark.parametrize("api", ["echo", "llama.cpp", "content"])
def test_every_api_with_log_probabilities_gives_the_same_answer(folder: Path, api: str) -> None:
    runs = Configuration.parse("bfloat16+sdpa")
    served = verified(Engine(folder=folder, configuration=runs, api=api))
    assert codes(served) == []
    assert {one.dtype for one in served.like} == {Dtype.BFLOAT16}


@pytest.mark.parametrize("api", ["greedy", "chat"])
def test_greedy_tokens_are_consistent_with_the_checkpoint(folder: Path, api: str) -> None:
    served = verified(Engine(folder=folder, api=api))
    assert codes(served) == ["PC820"]
    assert served.fingerprint.by_tokens_alone
    assert Configuration.parse("float32+sdpa") in served.like
    assert "consistent with" in served.sentence


def another_seed(model: torch.nn.Module) -> None:
    model.load_state_dict(tiny("qwen2", num_layers=2, seed=7).state_dict())


def scaled_layer(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.mul_(1.3)


def times_1_1(row: torch.Tensor, _: list[int]) -> torch.Tensor:
    return row * 1.1


def top_10(row: torch.Tensor, _: list[int]) -> torch.Tensor:
    kept = row.topk(10).indices
    return torch.full_like(row, -torch.inf).index_copy(0, kept, row[kept])


def nan_row(row: torch.Tensor, so_far: list[int]) -> torch.Tensor:
    return row * torch.nan if len(so_far) == 20 else row


def penalised(row: torch.Tensor, so_far: list[int]) -> torch.Tensor:
    row[torch.tensor(sorted(set(so_far)))] -= 0.5
    return row


INT4 = Configuration.parse("float32+sdpa+kv:int4")
PLANTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "bos-twice": ({"num_bos": 2}, "PC801", "BOS stands twice"),
    "no-bos": ({"num_bos": 0}, "PC801", "no BOS"),
    "template": ({"template": ANOTHER_TEMPLATE}, "PC802", "another prompt"),
    "short-context": ({"keeps": 10}, "PC803", "reads 10 of"),
    "layer": ({"change": scaled_layer}, "PC810", "none of the measured"),
    "seed": ({"change": another_seed}, "PC811", "another checkpoint"),
    "scaled": ({"process": times_1_1}, "PC812", "times 1.100"),
    "top-k": ({"process": top_10}, "PC813", "top-k = 10"),
    "penalty": ({"process": penalised}, "PC814", "0.5 nat less"),
    "sampled": ({"is_sampled": True}, "PC815", "they are sampled"),
    "cache-layer": (
        {"configuration": INT4, "storing": Storing(is_stored=lambda part: part.startswith("1."))},
        "PC816",
        "prompts agree with float32",
    ),
    "nan-row": ({"process": nan_row}, "PC818", "without a number"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_the_planted_fault_is_named(folder: Path, name: str) -> None:
    engine, code, words = PLANTS[name]
    served = verified(Engine(folder=folder, **engine))
    assert codes(served) == [code]
    assert words in served.findings[0].message
    assert "--save-logits" not in served.findings[0].advice
    explained = {"PC801", "PC802", "PC803", "PC815", "PC818"}
    assert bool(served.like) == (code in explained)


def test_company_that_changes_answers_is_named(folder: Path) -> None:
    served = verified(Engine(folder=folder, is_changed_by_company=True))
    assert codes(served) == ["PC817"]


def test_another_seed_is_found_by_greedy_tokens(folder: Path) -> None:
    served = verified(Engine(folder=folder, api="greedy", change=another_seed))
    assert "PC810" in codes(served)
    assert not served.like


def test_a_format_of_the_cache_is_named(folder: Path) -> None:
    runs = Configuration.parse("bfloat16+sdpa+kv:int4")
    served = verified(
        Engine(folder=folder, configuration=runs, prompt_reads_cache=True),
        kv_cache_dtypes=("int4", "fp8_e4m3"),
    )
    assert codes(served) == []
    assert served.like == (runs,)
