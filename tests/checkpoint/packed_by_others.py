"""Writes ``data/packed_by_others.safetensors``: linears packed and decoded by other libraries.

For an environment of its own: ``pip install torch gptqmodel auto-gptq`` (written with torch 2.15,
gptqmodel 7.7.0 and auto-gptq 0.7.1), then ``python tests/checkpoint/packed_by_others.py``. The
tests that read the file need none of these.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file

FILE = Path(__file__).parent / "data" / "packed_by_others.safetensors"
NUM_INPUTS, NUM_OUTPUTS, GROUP_SIZE = 96, 64, 32


def drawn(bits: int, *, is_ordered: bool) -> tuple[torch.nn.Linear, Any, Any, Any]:
    """A linear that quantises without any loss, its scales, zero points and groups."""
    generator = torch.Generator().manual_seed(bits + 10 * is_ordered)
    groups = torch.arange(NUM_INPUTS) // GROUP_SIZE
    if is_ordered:
        groups = groups[torch.randperm(NUM_INPUTS, generator=generator)]
    num_groups = NUM_INPUTS // GROUP_SIZE
    integers = torch.randint(0, 2**bits, (NUM_INPUTS, NUM_OUTPUTS), generator=generator)
    zeros = torch.randint(1, 2**bits, (num_groups, NUM_OUTPUTS), generator=generator)
    scales = torch.rand(num_groups, NUM_OUTPUTS, generator=generator) * 0.01 + 0.001
    scales = scales.half().float()
    linear = torch.nn.Linear(NUM_INPUTS, NUM_OUTPUTS, bias=False)
    linear.weight.data = (scales[groups] * (integers - zeros[groups])).T.contiguous()
    return linear, scales.T.contiguous(), zeros.T.contiguous(), groups.int()


def by_auto_gptq(bits: int, *, is_ordered: bool) -> dict[str, torch.Tensor]:
    """Layout ``gptq``: zero points are stored one lower."""
    # the package itself wants an old transformers; its layer does not
    if "auto_gptq" not in sys.modules:
        found = find_spec("auto_gptq")
        assert found is not None
        for name in ("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear"):
            folder = Path(str(found.origin)).parent.joinpath(*name.split(".")[1:])
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(folder)]
    QuantLinear: Any = import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear  # noqa: N806

    linear, scales, zeros, groups = drawn(bits, is_ordered=is_ordered)
    packed = QuantLinear(
        bits, GROUP_SIZE, NUM_INPUTS, NUM_OUTPUTS, bias=False, weight_dtype=torch.float16
    )
    packed.pack(linear, scales, zeros.float(), groups)
    packed.autogptq_cuda_available = False
    with torch.no_grad():  # its forward decodes the weight, and the identity shows it
        decoded = packed(torch.eye(NUM_INPUTS)).T
    return _found(packed, decoded)


def by_gptqmodel(bits: int, *, is_ordered: bool) -> dict[str, torch.Tensor]:
    """Layout ``gptq_v2``: zero points are stored as they are."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: PLC0415

    linear, scales, zeros, groups = drawn(bits, is_ordered=is_ordered)
    packed = TorchLinear(
        bits=bits,
        group_size=GROUP_SIZE,
        sym=False,
        desc_act=is_ordered,
        in_features=NUM_INPUTS,
        out_features=NUM_OUTPUTS,
        bias=False,
    )
    packed.pack_original(linear, scales, zeros, groups)
    packed.post_init()
    return _found(packed, packed.dequantize_weight().T)


def by_awq() -> dict[str, torch.Tensor]:
    """AWQ's own unpacking of random words."""
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm  # noqa: PLC0415

    generator = torch.Generator().manual_seed(4)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, shape, generator=generator).int()

    num_groups = NUM_INPUTS // GROUP_SIZE
    qweight, qzeros = words(NUM_INPUTS, NUM_OUTPUTS // 8), words(num_groups, NUM_OUTPUTS // 8)
    scales = (torch.rand(num_groups, NUM_OUTPUTS, generator=generator) * 0.01).half()
    decoded = dequantize_gemm(qweight, qzeros, scales, 4, GROUP_SIZE).T
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales, "decoded": decoded}


def _found(packed: Any, decoded: torch.Tensor) -> dict[str, torch.Tensor]:
    parts = {name: getattr(packed, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    return {**parts, "decoded": decoded.half()}


def main() -> None:
    """Writes the file."""
    cases = {"awq": by_awq()}
    for bits in (2, 3, 4, 8):
        for is_ordered in (False, True):
            order = "desc_act" if is_ordered else "plain"
            cases[f"gptq-{bits}-{order}"] = by_auto_gptq(bits, is_ordered=is_ordered)
            cases[f"gptq_v2-{bits}-{order}"] = by_gptqmodel(bits, is_ordered=is_ordered)
    FILE.parent.mkdir(exist_ok=True)
    save_file(
        {
            f"{case}.{name}": tensor.detach().contiguous()
            for case, tensors in cases.items()
            for name, tensor in tensors.items()
        },
        FILE,
    )
    sys.stdout.write(f"{len(cases)} cases in {FILE}\n")


if __name__ == "__main__":
    main()
