"""``precheck scan``: measure, judge, render, gate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import typer

from precheck import pipeline
from precheck.commands import arguments, terminal
from precheck.commands.gating import EXIT_CODES, Gating
from precheck.commands.importing import import_torch
from precheck.commands.options import (
    DTYPES,
    AllLayers,
    AttnImplementations,
    Baseline,
    Card,
    Debug,
    DeployedFor,
    Device,
    Dtypes,
    FailOnOption,
    Gpus,
    KvCacheDtypes,
    MaxMemory,
    Model,
    Output,
    PromptFile,
    PromptText,
    Quantizations,
    Quiet,
    Redact,
    Require,
    RequireProof,
    Revision,
    StdoutFormat,
    TrustRemoteCode,
    Verbose,
)
from precheck.commands.saving import Saving
from precheck.commands.scan_options import (
    Accumulations,
    AllowPickle,
    BuiltinProbes,
    CapsuleFolder,
    Context,
    Full,
    NumGenerated,
    Prove,
    ProveMinutes,
    Quick,
    Resident,
    SaveLogits,
    Static,
    Stream,
)
from precheck.commands.writing import Detail, Writing, plan_writing
from precheck.errors import ExitCode, ScanInterrupted
from precheck.facts.engines import EngineName
from precheck.judge.gate import FailOn
from precheck.measure.processes import is_first_process
from precheck.records.outcomes.gate import Outcome
from precheck.records.precision import Dtype
from precheck.records.report import Report
from precheck.render import Format
from precheck.served.request import NUM_GENERATED, VerifyRequest


def scan(
    model: Model,
    *,
    revision: Revision = None,
    dtype: Dtypes = DTYPES,
    attn: AttnImplementations = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    allow_pickle: AllowPickle = False,
    prompt: PromptText = None,
    prompts: PromptFile = None,
    builtin_probes: BuiltinProbes = False,
    quick: Quick = False,
    context: Context = None,
    max_memory: MaxMemory = None,
    resident: Resident = False,
    prove: Prove = False,
    prove_minutes: ProveMinutes = 0.0,
    accumulation: Accumulations = None,
    kv_cache_dtype: KvCacheDtypes = None,
    quantization: Quantizations = None,
    generate: NumGenerated = 0,
    static: Static = False,
    full: Full = False,
    stream: Stream = False,
    capsule: CapsuleFolder = None,
    logits: SaveLogits = None,
    output: Output = None,
    card: Card = None,
    stdout_format: StdoutFormat = Format.TABLE,
    redact: Redact = None,
    verbose: Verbose = False,
    all_layers: AllLayers = False,
    quiet: Quiet = False,
    debug: Debug = False,
    gpu: Gpus = None,
    deployed_for: DeployedFor = EngineName.TRANSFORMERS,
    require: Require = None,
    require_proof: RequireProof = None,
    baseline: Baseline = None,
    fail_on: FailOnOption = FailOn.ERROR,
) -> None:
    """Measure MODEL in every dtype and attention implementation, and say which to use.

    Exit code 0: PASS, 1: FAIL, 2: usage, 3: INCOMPLETE.
    """
    del debug
    is_first = is_first_process()
    quiet = quiet or not is_first
    own = arguments.prompts(prompt or (), prompts)
    writing = plan_writing(
        output=output if is_first else None,
        card=card if is_first else None,
        stdout_format=stdout_format,
        redact=redact,
        detail=Detail.of(verbose=verbose, all_layers=all_layers),
        quiet=quiet,
        prompts=own,
    )
    memory = arguments.size(max_memory, flag="--max-memory")
    saving = None
    if logits is not None:
        asked = VerifyRequest(
            dtypes=(Dtype.FLOAT32,),
            prompts=own,
            num_generated=generate or NUM_GENERATED,
            device=device,
            max_memory=memory,
            trust_remote_code=trust_remote_code,
        )
        saving = Saving(
            model=model, path=logits, request=asked, allow_pickle=allow_pickle, quiet=quiet
        )
        saving.check(has_weights=not (static or stream))
    gating = Gating.of(
        require=require, require_proof=require_proof, baseline=baseline, fail_on=fail_on
    )
    measured = partial(
        pipeline.scan,
        model,
        attn_implementations=arguments.listed(attn, flag="--attn"),
        accumulations=arguments.listed(accumulation, flag="--accumulation"),
        kv_cache_dtypes=arguments.listed(kv_cache_dtype, flag="--kv-cache-dtype") or (),
        quantizations=arguments.listed(quantization, flag="--quantization") or (),
        dtypes=arguments.dtypes(dtype),
        max_memory=memory,
        prompts=own,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        gpus=arguments.each(gpu),
        require=gating.require,
        builtin_probes=builtin_probes,
        quick=quick,
        context=arguments.context(context),
        resident=resident,
        prove=prove,
        prove_minutes=prove_minutes,
        generate=generate,
        static=static,
        full=full,
        stream=stream,
        capsule=capsule,
    )
    _finish(measured, writing, saving, gating, engine=deployed_for.label, writes=is_first)


def _finish(
    measured: Callable[..., Report],
    writing: Writing,
    saving: Saving | None,
    gating: Gating,
    *,
    engine: str,
    writes: bool,
) -> None:
    """Scans, writes the report, and ends; what was measured until Ctrl-C is written too.

    Args:
        measured: makes the report, and takes whom to tell what happens.
        writing: where the report goes.
        saving: writes log-probabilities; None: nobody asked for them.
        gating: judges it.
        engine: the one to show the command for.
        writes: this process writes; others have told it what they found.

    Raises:
        typer.Exit: the gate's answer, or that the scan was interrupted.
    """
    report: Report | None = None
    try:
        with terminal.progress(quiet=writing.quiet) as observe:
            import_torch(observe)
            report = measured(observe=observe)
        if not writes:
            return
        report = gating.accept(report)
        outcome = gating.judge(report)
        try:
            writing.on_stdout(report, outcome, engine=engine)
        finally:
            writing.into_files(report)
        if saving is not None:
            saving.save(report)
    except KeyboardInterrupt as interrupted:
        terminal.say("interrupted")
        if isinstance(interrupted, ScanInterrupted) and isinstance(interrupted.partial, Report):
            report = interrupted.partial
        if writes:
            _write_partial(report, writing=writing, gating=gating)
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    terminal.say(outcome.line)
    raise typer.Exit(EXIT_CODES[outcome.outcome])


def _write_partial(report: Report | None, *, writing: Writing, gating: Gating) -> None:
    if report is None:
        terminal.say(f"{Outcome.INCOMPLETE}: nothing was measured")
        return
    writing.into_files(report)
    terminal.say(gating.judge(report).line)
