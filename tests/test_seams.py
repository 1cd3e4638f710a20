"""Private parts of torch and transformers: who uses them, and what broke if they go.

A failure here names the file to look at, before a hundred other tests fail for the same reason.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tiny_models import tiny

PACKAGE = Path(__file__).parents[1] / "precheck"

IMPORTED: dict[tuple[str, str], tuple[str, ...]] = {
    ("torch._ops", "OpOverload"): (
        "measure/formats/stored_products.py",
        "measure/hunt/row_maxima.py",
        "measure/watch/float16_sums.py",
        "measure/watch/rounded_products.py",
        "measure/trace/fake_results.py",
        "measure/trace/flow.py",
        "measure/trace/known_numbers.py",
        "measure/blame/live_examination.py",
        "measure/blame/live.py",
        "measure/watch/op_kinds.py",
        "measure/watch/ops.py",
        "measure/watch/segment.py",
    ),
    **{
        ("torch._subclasses.fake_tensor", name): (
            "measure/trace/flow.py",
            "measure/trace/known_numbers.py",
        )
        for name in (
            "DataDependentOutputException",
            "DynamicOutputShapeException",
        )
    },
    ("torch._subclasses.fake_tensor", "FakeTensorMode"): (
        "measure/trace/fake_results.py",
        "measure/trace/flow.py",
        "measure/trace/known_numbers.py",
    ),
    ("torch._subclasses.fake_tensor", "FakeTensor"): (
        "measure/trace/fake_results.py",
        "measure/trace/known_numbers.py",
    ),
    ("torch._subclasses.fake_tensor", "in_kernel_invocation_manager"): (
        "measure/trace/fake_results.py",
    ),
    ("torch._subclasses.fake_tensor", "unset_fake_temporarily"): (
        "measure/trace/known_numbers.py",
    ),
    ("torch.utils._python_dispatch", "TorchDispatchMode"): (
        "measure/trace/flow.py",
        "measure/blame/live.py",
        "measure/formats/stored_products.py",
        "measure/hunt/row_maxima.py",
        "measure/hunt/row_maxima.py",
        "measure/watch/ops.py",
        "measure/capsule/reproduce.py",
    ),
    ("torch.utils._python_dispatch", "_disable_current_modes"): (
        "measure/blame/live.py",
        "measure/formats/stored_op.py",
    ),
    ("transformers.conversion_mapping", "get_model_conversion_mapping"): (
        "measure/models/conversion.py",
    ),
    **{
        ("transformers.modeling_gguf_pytorch_utils", name): ("checkpoint/gguf/recipes.py",)
        for name in ("TENSOR_PROCESSORS", "TensorProcessor", "get_gguf_hf_weights_map")
    },
    ("transformers.core_model_loading", "WeightConverter"): ("measure/models/conversion.py",),
    ("transformers.core_model_loading", "WeightRenaming"): ("measure/models/conversion.py",),
    ("transformers.core_model_loading", "dot_natural_key"): ("measure/models/conversion.py",),
    ("transformers.core_model_loading", "rename_source_key"): ("measure/models/conversion.py",),
}
"""What is imported, and the files that may: one seam each."""

ATTRIBUTES: list[tuple[object, str, str]] = [
    (
        torch.compiler,
        "set_stance",
        "compiled blocks run uncompiled (measure/machine/environment.py)",
    ),
    (
        torch.Tensor,
        "_version",
        "inputs that were written into (measure/watch/trees.py, measure/watch/operands.py)",
    ),
    (torch.UntypedStorage, "_cdata", "views are told from copies (measure/blame/examine.py)"),
    (
        transformers.PreTrainedModel,
        "_from_config",
        "models without weights (checkpoint/outline/model.py)",
    ),
    (
        transformers.PreTrainedModel,
        "_can_set_attn_implementation",
        "attention is switched on a built model (measure/models/attention.py)",
    ),
    (
        transformers.PreTrainedModel,
        "set_attn_implementation",
        "attention is switched on a built model (measure/models/attention.py)",
    ),
    (
        transformers.AutoModelForCausalLM,
        "_model_mapping",
        "classes by config (checkpoint/outline/model.py)",
    ),
]


def is_private(module: str) -> bool:
    parts = module.split(".")
    is_known = parts[0] in {"torch", "transformers"}
    return is_known and (
        any(part.startswith("_") for part in parts)
        or parts[-1] in {"core_model_loading", "conversion_mapping", "modeling_gguf_pytorch_utils"}
    )


def imports() -> dict[tuple[str, str], set[str]]:
    """Each private name that precheck imports, with the files that do."""
    found: dict[tuple[str, str], set[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and is_private(node.module):
                for name in node.names:
                    where = file.relative_to(PACKAGE).as_posix()
                    found.setdefault((node.module, name.name), set()).add(where)
    return found


def test_no_other_private_part_is_used_and_none_from_elsewhere() -> None:
    assert imports() == {name: set(files) for name, files in IMPORTED.items()}


@pytest.mark.parametrize(("module", "name"), list(IMPORTED))
def test_it_is_still_there(module: str, name: str) -> None:
    users = ", ".join(IMPORTED[module, name])
    assert hasattr(importlib.import_module(module), name), f"{module}.{name} is gone: see {users}"


@pytest.mark.parametrize(("owner", "name", "purpose"), ATTRIBUTES)
def test_the_attribute_is_still_there(owner: Any, name: str, purpose: str) -> None:
    assert hasattr(owner, name), f"{name} is gone: {purpose}"


def test_a_dispatch_mode_sees_the_operations_of_a_model() -> None:
    seen: list[str] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            seen.append(func._schema.name)  # noqa: SLF001  as measure/watch/op_kinds.py
            return func(*args, **(kwargs or {}))

    model = tiny("qwen2")
    with torch.no_grad(), Mode():  # type: ignore[no-untyped-call]
        model(input_ids=torch.ones(1, 3, dtype=torch.long))
    assert {"aten::mm", "aten::embedding"} <= set(seen)


def test_a_parameter_can_be_put_into_a_module_without_registering_it() -> None:
    """measure/models/streamed.py and measure/models/shared.py do."""
    layer = torch.nn.Linear(2, 2, bias=False)
    ones = torch.nn.Parameter(torch.ones(2, 2))
    layer._parameters["weight"] = ones  # noqa: SLF001
    assert layer.weight is ones
