"""A scan leaves a live module and the process as they were, however it ends."""

from __future__ import annotations

import _thread
import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

from precheck.errors import ScanInterrupted
from precheck.pipeline import scan
from precheck.records.finding import Verdict
from precheck.records.progress import Announcement, Step
from precheck.records.report import Report
from tests.measure.scans import run_of
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Traces:
    """Everything that a scan could leave changed, in a form that compares."""

    modules: dict[str, object]
    parameters: dict[str, object]
    buffers: dict[str, object]
    attention: str
    process: dict[str, object]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Traces:
        return cls(
            modules={
                name: (
                    id(module),
                    type(module),
                    module.training,
                    sorted(module.__dict__),
                    list(module._forward_hooks.items()),  # noqa: SLF001  torch has no public list
                    list(module._forward_pre_hooks.items()),  # noqa: SLF001
                    list(module._backward_hooks.items()),  # noqa: SLF001
                    id(module.__dict__.get("forward")),
                )
                for name, module in model.named_modules()
            },
            parameters={
                name: (
                    id(each),
                    each.data_ptr(),
                    each.dtype,
                    each.requires_grad,
                    each.device,
                    each._version,  # noqa: SLF001  counts writes
                    each.grad is None,
                )
                for name, each in model.named_parameters(remove_duplicate=False)
            },
            buffers={
                name: (id(each), each.data_ptr(), each.dtype, each._version)  # noqa: SLF001
                for name, each in model.named_buffers(remove_duplicate=False)
            },
            attention=str(model.config._attn_implementation),  # noqa: SLF001  no public spelling
            process=process_settings(),
        )


def process_settings() -> dict[str, object]:
    return {
        "threads": threading.active_count(),
        "grad": torch.is_grad_enabled(),
        "intraop": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "precision": torch.get_float32_matmul_precision(),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "random": torch.get_rng_state().tolist(),
        "verbosity": transformers.logging.get_verbosity(),
        "bars": transformers.logging.is_progress_bar_enabled(),
    }


def counting(_module: object, _args: object, _output: object) -> None:
    """A hook of the user's."""


@pytest.fixture
def model() -> PreTrainedModel:
    """A live module in the middle of its user's work: training, partly frozen, hooked."""
    model = tiny("qwen2", num_layers=2)
    model.train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    model.model.layers[1].mlp.register_forward_hook(counting)
    return model


@pytest.fixture(params=["highest", "medium"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def test_after_success(model: PreTrainedModel, precision: str) -> None:
    before = Traces.of(model)
    report = scan(model, quick=True)
    assert Traces.of(model) == before
    assert {run.failure for run in report.runs} == {None}
    assert torch.get_float32_matmul_precision() == precision


def test_after_a_scan_of_a_broken_module() -> None:
    model = tiny("qwen2", num_layers=2)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1e5)
    before = Traces.of(model)
    report = scan(model, quick=True, dtypes=["float16"])
    assert Traces.of(model) == before
    assert run_of(report, "float16", "sdpa").verdict is Verdict.OVERFLOW


def raising(wanted: Callable[[torch.Tensor], bool]) -> Callable[..., torch.Tensor]:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        if wanted(hidden_states):
            raise ValueError("the user's own error\nwith a second line")
        return hidden_states

    return forward


def test_after_a_forward_that_raises(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.forward = raising(lambda _: True)
    before = Traces.of(model)
    report = scan(model, quick=True)
    assert Traces.of(model) == before
    assert {run.verdict for run in report.runs} == {Verdict.FAILED}
    failures = {run.failure for run in report.runs if run.dtype == "float32"}
    assert failures == {"ValueError: the user's own error"}


def test_after_a_forward_that_raises_in_one_dtype(model: PreTrainedModel) -> None:
    model.model.layers[1].mlp.forward = raising(
        lambda hidden_states: hidden_states.dtype is torch.float16
    )
    before = Traces.of(model)
    report = scan(model, quick=True)
    assert Traces.of(model) == before
    for run in report.runs:
        is_broken = run.dtype == "float16"
        assert run.failure == ("ValueError: the user's own error" if is_broken else None)
        assert (run.verdict is Verdict.FAILED) == is_broken


class Interrupting:
    """An observer that raises at the given step."""

    def __init__(self, step: int, error: type[BaseException]) -> None:
        self.step, self.error, self.seen = step, error, 0

    def __call__(self, event: Announcement | Step) -> None:
        if isinstance(event, Step):
            if self.seen == self.step:
                raise self.error
            self.seen += 1


NUM_STEPS = 36
"""Six units in each of six runs."""
STEPS = [0, 1, 7, 20, 35]


@pytest.mark.parametrize("step", STEPS)
def test_after_ctrl_c(model: PreTrainedModel, step: int) -> None:
    before = Traces.of(model)
    observer = Interrupting(step, KeyboardInterrupt)
    with pytest.raises(ScanInterrupted) as caught:
        scan(model, quick=True, observe=observer)
    assert observer.seen == step
    assert Traces.of(model) == before
    assert isinstance(caught.value.partial, Report)
    assert not caught.value.partial.complete


@pytest.mark.parametrize("step", STEPS)
def test_after_an_error_of_the_observer(model: PreTrainedModel, step: int) -> None:
    before = Traces.of(model)
    with pytest.raises(ZeroDivisionError):
        scan(model, quick=True, observe=Interrupting(step, ZeroDivisionError))
    assert Traces.of(model) == before


def test_steps_are_counted_to_the_end(model: PreTrainedModel) -> None:
    events: list[Announcement | Step] = []
    scan(model, quick=True, observe=events.append)
    steps = [event for event in events if isinstance(event, Step)]
    assert len(steps) == NUM_STEPS
    shares = [step.share for step in steps]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert 0.5 < shares[-1] < 1


@pytest.mark.parametrize("text", ["scanning", "parameters", "in memory"])
def test_after_ctrl_c_before_the_first_step(model: PreTrainedModel, text: str) -> None:
    before = Traces.of(model)

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Announcement) and text in event.text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(model, quick=True, observe=observe)
    assert Traces.of(model) == before


def test_after_ctrl_c_while_an_operation_runs(model: PreTrainedModel) -> None:
    # What the terminal does: the signal arrives while the main thread waits for a worker.
    class Impatient(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            if hidden_states.dtype is torch.bfloat16:
                _thread.interrupt_main()
            return torch.tanh(hidden_states)

    model.model.layers[1].mlp.act_fn = Impatient()
    before = Traces.of(model)
    with pytest.raises(ScanInterrupted):
        scan(model, quick=True)
    assert Traces.of(model) == before


@pytest.mark.parametrize("step", [None, 12])
def test_after_a_scan_of_a_checkpoint(step: int | None, tmp_path: Path) -> None:
    model = tiny("qwen2", num_layers=2)
    save_checkpoint(model, tmp_path, tokenizer=True)
    torch.manual_seed(123)
    before = process_settings()
    if step is None:
        scan(tmp_path, quick=True)
    else:
        with pytest.raises(ScanInterrupted):
            scan(tmp_path, quick=True, observe=Interrupting(step, KeyboardInterrupt))
    assert process_settings() == before


def show_bars(is_on: bool) -> None:
    if is_on:
        transformers.logging.enable_progress_bar()
    else:
        transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("is_on", [True, False])
def test_transformers_is_as_talkative_as_before(is_on: bool, tmp_path: Path) -> None:
    save_checkpoint(tiny("qwen2", num_layers=2), tmp_path, tokenizer=True)
    log = transformers.logging
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(logging.INFO if is_on else logging.ERROR)
    show_bars(is_on)
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    try:
        scan(tmp_path, quick=True, dtypes=["float16"])
        assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before
    finally:
        log.set_verbosity(verbosity)
        show_bars(had_bars)


def test_an_interrupted_run_is_not_called_safe() -> None:
    # float16 breaks in layer 0; the scan is interrupted after that, before the output is judged.
    model = tiny("qwen2", num_layers=2)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e5)
    with pytest.raises(ScanInterrupted) as caught:
        scan(model, quick=True, observe=Interrupting(20, KeyboardInterrupt))
    partial = caught.value.partial
    assert isinstance(partial, Report)
    run = run_of(partial, "float16", "sdpa")
    assert run.layers[0].num_nan + run.layers[0].num_inf > 0
    assert run.verdict not in {Verdict.SAFE, Verdict.ABSORBED, Verdict.LOW_HEADROOM}


def test_a_module_can_be_scanned_again(model: PreTrainedModel) -> None:
    def figures(report: Report) -> list[Any]:
        return [(run.layers, run.logits, run.verdict) for run in report.runs]

    first = scan(model, quick=True)
    with pytest.raises(ScanInterrupted):
        scan(model, quick=True, observe=Interrupting(9, KeyboardInterrupt))
    assert figures(scan(model, quick=True)) == figures(first)
