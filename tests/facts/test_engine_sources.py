"""What ``engines.toml`` says of vLLM and SGLang, against their own source: ``make facts``.

Constants are read from the source; the functions that choose a dtype are run as they are written
there, for every device, dtype and family in question, and compared with ours.
"""

from __future__ import annotations

import ast
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from precheck.facts import architectures
from precheck.facts.devices import find
from precheck.facts.engines import engine
from precheck.judge.devices.engines import default_of
from precheck.judge.thresholds import USABLE_MEMORY
from precheck.records.precision import Dtype
from precheck.records.report import ModelFacts
from tests import hand_made

SOURCES = Path(os.environ.get("PRECHECK_ENGINE_SOURCES", "/nowhere"))

pytestmark = pytest.mark.skipif(
    not SOURCES.is_dir(), reason="make facts fetches the source of the engines"
)

DEVICES = ("T4", "L4", "A100", "H100", "RTX 5090")
NOT_SERVED_BY_VLLM = {
    "_SPECULATIVE_DECODING_MODELS",  # drafts
    "_TRANSFORMERS_BACKEND_MODELS",  # the wrappers themselves
    "_PREVIOUSLY_SUPPORTED_MODELS",
    "_OOT_SUPPORTED_MODELS",
    "_VLLM_MODELS",  # all of them
}
MODEL_TYPES = ("qwen2", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "glm4", "gpt_oss")


def tree(file: str) -> ast.Module:
    return ast.parse((SOURCES / file).read_text(encoding="utf-8"))


def constant(file: str, name: str) -> Any:
    for node in tree(file).body:
        targets = (
            node.targets
            if isinstance(node, ast.Assign)
            else [node.target]
            if isinstance(node, ast.AnnAssign)
            else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            return ast.literal_eval(node.value)
    raise AssertionError(f"{name} is gone from {file}")


def functions(file: str, *names: str, given: dict[str, Any]) -> dict[str, Any]:
    """The functions as they are written in the file, with what they look up replaced."""
    wanted = [
        node for node in tree(file).body if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    assert {recommendation.name for recommendation in wanted} == set(names), (
        f"a function is gone from {file}"
    )
    module = ast.Module(body=list(wanted), type_ignores=[])
    for node in wanted:
        node.returns = None
        for argument in (*node.args.args, *node.args.kwonlyargs):
            argument.annotation = None
    space = dict(given)
    exec(compile(module, file, "exec"), space)  # noqa: S102  what make facts is for
    return space


def model(model_type: str, declared: str) -> ModelFacts:
    base = hand_made.measurements().model
    return ModelFacts(
        id="m",
        revision=None,
        architecture="LlamaForCausalLM",
        model_type=model_type,
        decoder_layers="model.layers",
        num_decoder_layers=1,
        num_parameters=1,
        declared_dtype=declared,
        tensor_dtypes={declared: 1},
        attention=base.attention,
    )


def test_vllm_refuses_float16_for_the_families_that_are_listed() -> None:
    listed = constant("vllm/config/model.py", "_FLOAT16_NOT_SUPPORTED_MODELS")
    assert sorted(listed) == sorted(engine("vllm").refuses_float16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("declared", list(Dtype))
def test_vllm_chooses_what_we_say(device: str, model_type: str, declared: Dtype) -> None:
    hardware = find(device)
    assert hardware.capability is not None
    in_cuda = next(
        each
        for node in ast.walk(tree("vllm/platforms/cuda.py"))
        if isinstance(node, ast.ClassDef)
        for each in node.body
        if isinstance(each, ast.FunctionDef) and each.name == "supported_dtypes"
    )
    in_cuda.decorator_list, in_cuda.returns = [], None
    space: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(body=[in_cuda], type_ignores=[]), "cuda.py", "exec"), space)  # noqa: S102
    major, minor = hardware.capability
    platform = SimpleNamespace(has_device_capability=lambda least: major * 10 + minor >= least)
    supported = space["supported_dtypes"](platform)
    found = functions(
        "vllm/config/model.py",
        "_resolve_auto_dtype",
        "_is_valid_dtype",
        given={
            "torch": torch,
            "logger": logging.getLogger("vllm"),
            "_FLOAT16_NOT_SUPPORTED_MODELS": constant(
                "vllm/config/model.py", "_FLOAT16_NOT_SUPPORTED_MODELS"
            ),
            "current_platform": SimpleNamespace(
                supported_dtypes=supported,
                get_device_name=lambda: device,
                get_device_capability=lambda: None,
            ),
        },
    )
    theirs = found["_resolve_auto_dtype"](
        model_type, getattr(torch, declared), is_pooling_model=False
    )
    ours = default_of(engine("vllm"), model(model_type, declared), hardware).dtype
    assert f"torch.{ours}" == str(theirs)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("declared", list(Dtype))
def test_sglang_chooses_what_we_say(model_type: str, declared: Dtype) -> None:
    names = {str(each): getattr(torch, each) for each in Dtype}
    found = functions(
        "sglang/srt/configs/model_config.py",
        "_get_and_verify_dtype",
        given={
            "torch": torch,
            "logger": logging.getLogger("sglang"),
            "_STR_DTYPE_TO_TORCH_DTYPE": names,
        },
    )
    theirs = found["_get_and_verify_dtype"](
        {"dtype": str(declared), "model_type": model_type}, "auto"
    )
    ours = default_of(engine("sglang"), model(model_type, declared), find("L4")).dtype
    assert f"torch.{ours}" == str(theirs)


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (7, 5), (8, 0), (9, 0)])
def test_sglang_forces_float16_below_sm_80_and_refuses_below_sm_75(
    capability: tuple[int, int],
) -> None:
    file = "sglang/srt/model_executor/model_runner_components/load_model_utils.py"
    given = {
        "torch": SimpleNamespace(
            cuda=SimpleNamespace(get_device_capability=lambda: capability), float16="float16"
        ),
        "logger": logging.getLogger("sglang"),
        "get_context": lambda: SimpleNamespace(override=lambda *_, **__: None),
    }
    found = functions(file, "maybe_downgrade_dtype_for_legacy_gpu", given=given)
    config = SimpleNamespace(dtype="bfloat16")
    is_refused = False
    try:
        found["maybe_downgrade_dtype_for_legacy_gpu"](model_config=config)
    except RuntimeError:
        is_refused = True
    hardware = find(f"sm_{capability[0]}{capability[1]}")
    ours = default_of(engine("sglang"), model("gemma3", "bfloat16"), hardware)
    assert (ours.dtype is None) == is_refused
    assert is_refused or str(ours.dtype) == config.dtype


def listed(engine: str) -> frozenset[str]:
    return next(each for each in architectures.table().served if each.id == engine).architectures


def test_vllm_has_the_architectures_and_the_endings_that_are_listed() -> None:
    theirs: set[str] = set()
    for node in tree("vllm/model_executor/models/registry.py").body:
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Dict):
            continue
        name = ast.unparse(node.targets[0])
        if name.endswith("_MODELS") and name not in NOT_SERVED_BY_VLLM:
            keys = [each for each in node.value.keys if isinstance(each, ast.Constant)]
            theirs |= {str(each.value) for each in keys}
    assert listed("vllm") == theirs - {"Terratorch"}
    endings = constant("vllm/config/model.py", "_SUFFIX_TO_DEFAULTS")
    row = next(each for each in architectures.table().served if each.id == "vllm")
    assert row.endings == tuple(ending for ending, _ in endings)


def test_sglang_has_the_architectures_that_are_listed() -> None:
    theirs: set[str] = set()
    for path in sorted((SOURCES / "sglang/srt/models").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EntryClass":
                each = node.value
                classes = each.elts if isinstance(each, ast.List | ast.Tuple) else [each]
                theirs |= {ast.unparse(entry) for entry in classes}
    theirs = {name for name in theirs if not name.startswith("Transformers")}
    assert listed("sglang") == theirs


def test_llama_cpp_has_the_architectures_that_are_listed() -> None:
    assert listed("llama_cpp") == set(constant("conversion/__init__.py", "TEXT_MODEL_MAP"))


def test_sglang_forces_the_architectures_that_are_listed() -> None:
    listed = constant("sglang/srt/arg_groups/model_override_base.py", "MODEL_OVERRIDES")
    dtypes = {name: each["dtype"] for name, each in listed.items() if "dtype" in each}
    assert dtypes == {name: str(dtype) for name, dtype in engine("sglang").forced.items()}


@pytest.mark.parametrize(
    ("method", "file"),
    [("gptq", "auto_gptq"), ("awq", "auto_awq"), ("fp8", "fp8"), ("mxfp4", "mxfp4")],
)
def test_vllm_takes_the_dtypes_and_capabilities_of_quantisations(method: str, file: str) -> None:
    path = f"vllm/model_executor/layers/quantization/{file}.py"
    found: dict[str, Any] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef) and node.name in {
            "get_supported_act_dtypes",
            "get_min_capability",
        }:
            value = next(each.value for each in node.body if isinstance(each, ast.Return))
            found.setdefault(node.name, value)
    taken = {
        {"half": "float16"}.get(elt.attr, elt.attr)
        for elt in found["get_supported_act_dtypes"].elts
    }
    assert taken == {str(each) for each in engine("vllm").quantized[method]}
    assert ast.literal_eval(found["get_min_capability"]) == engine("vllm").quantized_from[method]


def test_vllm_takes_the_share_of_memory_that_we_count_with() -> None:
    text = (SOURCES / "vllm/config/cache.py").read_text(encoding="utf-8")
    assert f"gpu_memory_utilization: float = Field(default={USABLE_MEMORY.value}" in text
