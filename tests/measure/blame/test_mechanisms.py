"""Mechanisms come from data flow: a transformer without a single telling name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

import precheck
from precheck.measure.blame.graph import Graph, SegmentRole
from precheck.measure.blame.mechanisms import mechanism_in
from precheck.measure.watch.segment import HIDDEN, WEIGHT, OpNode, Origin
from precheck.measure.watch.source_line import _frame_rank
from precheck.pipeline import scan
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from tests.measure.scans import run_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from precheck.records.report import Report
    from precheck.records.traces import Overflow

SIZE, VOCAB = 16, 40


class Anise(nn.Module):
    """A normalisation in float32, its result cast back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(SIZE))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (y * self.a.float()).to(x.dtype)


class Basil(nn.Module):
    """Attention of one head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = self.a(x) @ self.b(x).transpose(-1, -2)
        p = p / math.sqrt(SIZE)
        hidden = torch.ones(p.shape[-2:], dtype=torch.bool).triu(1)
        p = p.masked_fill(hidden, torch.finfo(p.dtype).min).softmax(dim=-1)
        return self.d(p @ self.c(x))


class Clove(nn.Module):
    """A gated feed-forward block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(SIZE, 2 * SIZE, bias=False) for _ in range(2))
        self.c = nn.Linear(2 * SIZE, SIZE, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = nn.functional.silu(self.a(x))
        q = self.b(x)
        return self.c(p * q)


class Dill(nn.Module):
    """A decoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = Anise(), Basil(), Anise(), Clove()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.b(self.a(x))
        return x + self.d(self.c(x))


class Estragon(nn.Module):
    """A decoder-only transformer that is no ``PreTrainedModel``."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Embedding(VOCAB, SIZE)
        self.b = nn.ModuleList(Dill() for _ in range(2))
        self.c = Anise()
        self.d = nn.Linear(SIZE, VOCAB, bias=False)
        self.scale = 1.0

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.a(input_ids) * self.scale
        for layer in self.b:
            x = layer(x)
        return self.d(self.c(x))


def herbs() -> Any:
    model = Estragon()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn / math.sqrt(parameter.shape[-1]))
    return model


def report_of(model: nn.Module) -> Report:
    return scan(model, dtypes=["float16"], quick=True)


def line_of(part: str) -> str:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    number = next(number for number, line in enumerate(lines, 1) if part in line)
    return f"test_mechanisms.py:{number}"


def times(factor: float, *names: str) -> Callable[[Any], None]:
    def plant(model: Any) -> None:
        for name in names:
            model.get_submodule(name).weight.data.mul_(factor)

    return plant


def large_stream(model: Any) -> None:
    """The stream stands at 40,000 in one channel, and the block adds as much."""
    model.a.weight.data[:, 0] = 40_000.0
    model.get_submodule("b.1.d.a").weight.data.zero_()
    model.get_submodule("b.1.d.a").weight.data[:, 0] = 1.0
    model.get_submodule("b.1.d.b").weight.data.zero_()
    model.get_submodule("b.1.d.b").weight.data[:, 0] = 1.0
    model.get_submodule("b.1.d.c").weight.data.zero_()
    model.get_submodule("b.1.d.c").weight.data[0] = 40_000.0 / (2 * SIZE * 15.6)


def scaled_embedding(model: Any) -> None:
    model.scale = 1e6


PLANTS: list[tuple[Mechanism, str, str, str, Callable[[Any], None]]] = [
    (
        Mechanism.ATTENTION_SCORES,
        "b.1.b",
        "aten.bmm",
        "p = self.a(x) @ self.b(x)",
        times(500, "b.1.b.a", "b.1.b.b"),
    ),
    (
        Mechanism.PROJECTION,
        "b.0.b.c",
        "aten.mm",
        "return self.d(p @ self.c(x))",
        times(5e4, "b.0.b.c"),
    ),
    (
        Mechanism.PROJECTION,
        "b.1.b.d",
        "aten.mm",
        "return self.d(p @ self.c(x))",
        times(5e4, "b.1.b.d"),
    ),
    (
        Mechanism.GATED_PRODUCT,
        "b.1.d",
        "aten.mul",
        "return self.c(p * q)",
        times(500, "b.1.d.a", "b.1.d.b"),
    ),
    (
        Mechanism.MLP_OUTPUT,
        "b.0.d.c",
        "aten.mm",
        "return self.c(p * q)",
        times(5e4, "b.0.d.c"),
    ),
    (Mechanism.PROJECTION, "b.0.d.b", "aten.mm", "q = self.b(x)", times(5e4, "b.0.d.b")),
    (Mechanism.RESIDUAL, "b.1", "aten.add", "return x + self.d(self.c(x))", large_stream),
    (
        Mechanism.NORM,
        "b.1.c",
        "aten._to_copy",
        "return (y * self.a.float()).to(x.dtype)",
        lambda model: model.b[1].c.a.data.fill_(60_000.0),
    ),
    (Mechanism.EMBEDDING, "", "aten.mul", "x = self.a(input_ids) * self.scale", scaled_embedding),
    (Mechanism.LOGITS, "d", "aten.mm", "return self.d(self.c(x))", times(5e4, "d")),
]


def test_the_healthy_model_is_safe() -> None:
    report = report_of(herbs())
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert [finding for finding in report.findings if finding.severity is not Severity.NOTE] == []


def test_a_norm_shared_with_the_decoder_layers_is_no_trouble() -> None:
    model = herbs()
    model.b[0].a = model.b[1].a = model.c
    report = report_of(model)
    assert {run.failure for run in report.runs} == {None}
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


@pytest.mark.parametrize(
    ("mechanism", "module", "op", "code", "plant"),
    PLANTS,
    ids=[f"{plant[0]}-{plant[1] or 'root'}" for plant in PLANTS],
)
def test_the_mechanism_is_found_without_names(
    mechanism: Mechanism, module: str, op: str, code: str, plant: Callable[[Any], None]
) -> None:
    model = herbs()
    plant(model)
    run = run_of(report_of(model), "float16", "eager")
    culprit: Overflow | None = run.first_overflow
    assert run.verdict is Verdict.OVERFLOW
    assert culprit is not None
    assert (culprit.mechanism, culprit.module, culprit.op) == (mechanism, module, op)
    assert code in culprit.code
    assert culprit.source.startswith("test_mechanisms.py:")


def test_every_mechanism_has_its_headroom_in_every_layer() -> None:
    report = report_of(herbs())
    rows = {(row.mechanism, row.layer): row for row in report.headroom}
    of_layers = {
        Mechanism.ATTENTION_SCORES,
        Mechanism.GATED_PRODUCT,
        Mechanism.MLP_OUTPUT,
        Mechanism.RESIDUAL,
        Mechanism.PROJECTION,
        Mechanism.NORM,
    }
    assert {(name, layer) for name in of_layers for layer in (0, 1)} <= set(rows)
    assert (Mechanism.EMBEDDING, None) in rows
    assert (Mechanism.LOGITS, None) in rows
    # masks are constants, and the float32 inside of the norm is not float16
    assert all(row.abs_max < 1000 for row in report.headroom)
    norms = [row for key, row in rows.items() if key[0] is Mechanism.NORM]
    assert {row.op for row in norms} == {"aten._to_copy"}


def test_the_source_is_the_line_of_the_operation() -> None:
    model = herbs()
    times(500, "b.1.b.a", "b.1.b.b")(model)
    culprit = run_of(report_of(model), "float16", "eager").first_overflow
    assert culprit is not None
    assert culprit.source == line_of("p = self.a(x) @ self.b(x)")


@pytest.mark.parametrize(
    ("filename", "rank"),
    [
        ("/x/transformers/models/qwen2/modeling_qwen2.py", 2),
        ("/cache/modeling_remote.py", 2),
        ("/home/someone/my_model.py", 1),
        ("{torch}/nn/modules/linear.py", 0),
        ("{precheck}/measure/lockstep/turns.py", 0),
        ("{precheck}/cure/float32_search.py", 0),
        ("<string>", 0),
        ("{torch}vision/models/resnet.py", 1),
        ("{precheck}_models/mine.py", 1),
    ],
)
def test_frames_of_torch_and_precheck_are_no_source(filename: str, rank: int) -> None:
    folders = {
        name: Path(str(module.__file__)).parent
        for name, module in (("torch", torch), ("precheck", precheck))
    }
    assert _frame_rank(filename.format(**folders)) == rank


def test_a_recurrence_is_read_in_one_pass() -> None:
    """Each step uses the one before twice, as RWKV's do: 2 ** 500 paths lead back."""

    def node(index: int, op: str, *inputs: int) -> OpNode:
        return OpNode(
            index=index,
            module="layer",
            op=op,
            ordinal=index,
            inputs=tuple(Origin(parent, 0) for parent in inputs),
            shape=(1, 4, 8),
            dtype=torch.float16,
            is_cast=False,
            has_mask_scalar=False,
            filename="modeling_x.py",
            line=1,
        )

    nodes = [node(0, "aten.mm", HIDDEN, WEIGHT)]
    nodes += [node(index, "aten.mul", index - 1, index - 1) for index in range(1, 500)]
    graph = Graph(nodes=nodes, role=SegmentRole.BLOCK)
    mechanisms = [mechanism_in(graph, node) for node in nodes]
    assert set(mechanisms[2:]) == {Mechanism.OTHER}
