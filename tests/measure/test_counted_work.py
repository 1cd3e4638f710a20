"""What a scan does is counted, not timed: bytes read, audited and cast, and forwards."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint import checkpoint_audit
from precheck.checkpoint.tensor_audit import audit_chunk
from precheck.checkpoint.weights import Weights
from precheck.measure.models import split_head
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.models.streaming.tensor_reader import TensorReader
from precheck.pipeline import scan
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from torch import Tensor, nn
    from transformers import PreTrainedModel

NUM_BATCHES = 5
"""Of the built-in probes, without the text near the context."""


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Bytes that were read and audited, bytes that were cast to each dtype, and forwards."""
    counts: Counter[str] = Counter()
    read, cast, forward = Weights.read_into, TensorReader.cast, Skeleton.forward

    def counted_read(self: Weights, name: str, *args: Any) -> Tensor:
        counts["read"] += self.nbytes(name)
        return read(self, name, *args)

    def counted_audit(chunk: Tensor, *args: Any) -> Any:
        counts["audited"] += chunk.nbytes
        return audit_chunk(chunk, *args)

    def counted_cast(self: TensorReader, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        result = cast(self, tensor, dtype)
        counts[f"{dtype}"] += result.nbytes if result is not tensor else 0
        return result

    def counted_forward(self: Skeleton, *args: Any, **named: Any) -> Any:
        counts["forwards"] += 1
        return forward(self, *args, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Weights, "read_into", counted_read)
        patched.setattr(TensorReader, "cast", counted_cast)
        patched.setattr(Skeleton, "forward", counted_forward)
        patched.setattr(checkpoint_audit, "audit_chunk", counted_audit)
        yield counts


def saved(folder: Path) -> tuple[Path, PreTrainedModel]:
    model = tiny("qwen2", num_layers=6).bfloat16()
    return save_checkpoint(model, folder, tokenizer=True), model


def num_elements(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_everything_is_read_audited_and_cast_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = saved(tmp_path)
    with counted(monkeypatch) as counts:
        report = scan(folder, attn_implementations=["eager", "sdpa"])
    elements = num_elements(model)
    assert counts["read"] == counts["audited"] == 2 * elements
    assert counts["torch.float32"] == 4 * elements
    assert counts["torch.float16"] == 2 * elements
    assert counts["torch.bfloat16"] == 0  # it is stored so
    assert len(report.runs) == 6
    assert counts["forwards"] == 6 * NUM_BATCHES


def test_parts_of_a_head_are_cast_once_where_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_head, "PART_BYTES", 1 << 13)
    folder, model = saved(tmp_path)
    with counted(monkeypatch) as counts:
        scan(folder, attn_implementations=["eager", "sdpa"])
    assert len(split_head.parts_of(*model.get_output_embeddings().weight.shape)) > 1
    assert counts["forwards"] == 6 * NUM_BATCHES
    whole = num_elements(model) - num_elements(model.get_input_embeddings())  # read by rows
    assert counts["torch.float32"] == 4 * whole
    assert counts["torch.float16"] == 2 * whole


def test_nothing_is_cast_for_a_run_that_has_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, model = saved(tmp_path)
    layers: Any = model.get_submodule("model.layers")
    with torch.no_grad():
        layers[1].mlp.down_proj.weight.fill_(3e4)
    save_checkpoint(model, tmp_path, tokenizer=True)
    with counted(monkeypatch) as counts:
        report = scan(tmp_path, dtypes=["float16"], attn_implementations=["eager", "sdpa"])
    assert {run.stopped_after for run in report.runs} == {None, "model.layers.2"}
    cast = num_elements(model) - sum(map(num_elements, layers[3:]))
    assert counts["torch.float16"] == 2 * cast
    assert counts["audited"] == 2 * num_elements(model)
