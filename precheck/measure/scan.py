"""One scan: each step makes the value that the next one starts from."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.measure.batch_waves import in_waves
from precheck.measure.estimate import estimate_seconds
from precheck.measure.gathered import measurements
from precheck.measure.inputs import plan_inputs
from precheck.measure.long_text import cache_bytes, part_tokens
from precheck.measure.machine.devices import resolve_device
from precheck.measure.memory_budget import memory_budget
from precheck.measure.prepared import prepare
from precheck.measure.runs import run_all
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, duration, num_bytes

if TYPE_CHECKING:
    from precheck.measure.inputs import Inputs
    from precheck.measure.prepared import Prepared
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import Subject
    from precheck.records.report import Measurements


def scan(subject: Subject, request: Request, *, observe: Observer) -> Measurements:
    """What all runs measured.

    Raises:
        PrecheckError: the scan cannot start, or was stopped before anything was measured.
        ScanInterrupted: Ctrl-C while the runs ran; ``partial`` is what was measured so far.
        WeightsElsewhereError: this model runs only with all weights in memory.
    """
    device = resolve_device(request.device)
    size = f" ({num_bytes(subject.stored_bytes)})" if subject.stored_bytes else ""
    observe(Announcement(text=f"scanning {subject.name}{size}"))
    with prepare(subject, request, device=device) as prepared:
        inputs = _in_parts(prepared, plan_inputs(prepared))
        memory_limit = _plan_memory(prepared, inputs, observe=observe)
        gathered = run_all(prepared, inputs, memory_limit=memory_limit, observe=observe)
        return measurements(prepared, inputs, gathered)


def _in_parts(prepared: Prepared, inputs: Inputs) -> Inputs:
    """The inputs, of which the longest text is run in parts if it does not fit into memory."""
    longest = inputs.plan.longest
    if longest is None or not prepared.reference.can_keep_cache:
        return inputs
    budget = memory_budget(
        prepared.device,
        max_memory=prepared.request.max_memory,
        batches=[next(longest.parts(1))],
        skeletons=prepared.skeletons,
    )
    available = budget.limit - budget.used
    return replace(inputs, part_tokens=part_tokens(prepared, longest, available=available))


def _plan_memory(prepared: Prepared, inputs: Inputs, *, observe: Observer) -> int:
    """Decides what is in memory at once, and announces the scan; bytes that it may take."""
    batches, longest = list(inputs.plan.batches), inputs.plan.longest
    waves = in_waves(batches, range(len(batches)), is_streamed=prepared.request.is_streamed)
    cached = 0
    if longest is not None and inputs.part_tokens is not None:
        cached = cache_bytes(prepared, longest.input_ids.shape[1])
        part = longest.columns(slice(-inputs.part_tokens, None))
        batches[batches.index(longest)] = part
    largest = max(waves, key=lambda wave: sum(batches[index].num_positions for index in wave))
    budget = memory_budget(
        prepared.device,
        max_memory=prepared.request.max_memory,
        batches=[batches[index] for index in largest],
        skeletons=prepared.skeletons,
    )
    residency = prepared.models.plan_memory(
        prepared.layout, limit=budget.limit, used=budget.used + cached
    )
    observe(Announcement(text=_size_of_scan(prepared, inputs)))
    observe(Announcement(text=residency))
    return budget.limit


def _size_of_scan(prepared: Prepared, inputs: Inputs) -> str:
    num_parameters, plan, runs = prepared.facts.num_parameters, inputs.plan, prepared.skeletons
    seconds = estimate_seconds(
        num_parameters=num_parameters,
        num_tokens=plan.num_tokens,
        skeletons=runs,
        device=prepared.device,
    )
    return (
        f"{num_parameters / 1e6:,.1f} M parameters, {plan.num_tokens:,} tokens in "
        f"{counted(len(plan.probes), 'probe')}, {counted(len(runs), 'run')} on "
        f"{prepared.device}, estimated time: {duration(seconds)}"
    )
