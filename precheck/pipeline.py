"""The whole flow: a checkpoint or a live model in, a judged report out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from precheck.arguments import (
    as_accumulations,
    as_attentions,
    as_configuration,
    as_context,
    as_dtype,
    as_num_generated,
    check_combination,
    check_module,
    check_text,
    each_of,
)
from precheck.errors import ScanInterrupted, UsageError
from precheck.facts import devices, format_names
from precheck.judge import judge
from precheck.judge.comparison.cost import judged_cost
from precheck.judge.thresholds import LOST_IN_ONE_PART
from precheck.records.precision import Accumulation, Dtype
from precheck.records.report import Measurements, Report
from precheck.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from precheck.checkpoint.source import Access
    from precheck.measure.blame.live import Watch
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import CheckpointSubject, Subject
    from precheck.records.configuration import Configuration
    from precheck.records.outcomes.weights_cost import WeightsCost
    from precheck.records.progress import Announcement, Observer, Step
    from precheck.records.prompts import Prompt


def scan(
    model: str | Path | nn.Module,
    *,
    tokenizer: object = None,
    dtypes: Sequence[Dtype | str | torch.dtype] | str | torch.dtype | None = None,
    attn_implementations: Sequence[str] | None = None,
    prompts: Sequence[Prompt] | None = None,
    device: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    gpus: Sequence[str] = (),
    require: Sequence[Configuration | str] | str = (),
    builtin_probes: bool = False,
    quick: bool = False,
    context: int | Literal["max"] | None = None,
    max_memory: int | None = None,
    resident: bool = False,
    accumulations: Sequence[Accumulation | str] | None = None,
    kv_cache_dtypes: Sequence[str] | str = (),
    quantizations: Sequence[str] | str = (),
    prove: bool = False,
    prove_minutes: float = 0.0,
    generate: int = 0,
    static: bool = False,
    full: bool = False,
    stream: bool = False,
    capsule: str | Path | None = None,
    observe: Observer | None = None,
) -> Report:
    """The report on a checkpoint or a live model, measured in every requested configuration.

    A live model is left unchanged: no hook, mode, thread or setting remains, even after an error.

    Args:
        model: a local folder, a Hub id, ``demo:NAME``, or a live module.
        tokenizer: for a live module, for text probes: called with a text it returns
            ``{"input_ids": [...]}``. A checkpoint has its own.
        dtypes: names such as ``float16``, torch's dtypes, or a single one; ``auto`` is the
            checkpoint's own. None measures all three.
        attn_implementations: transformers' names, or a single one; None measures the model's
            default, and eager where that differs.
        prompts: texts, token-id lists and ``ImagePrompt``, instead of the built-in probes; None
            keeps those.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:0`` or ``mps``.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: run the code that comes with the checkpoint.
        allow_pickle: read weights that are stored as pickles, which can run code.
        gpus: advise for these (``T4``, ``sm_75``) instead of the device that was found.
        require: configurations (``float16+sdpa``) to measure whatever ``dtypes`` and the defaults
            say.
        builtin_probes: run the built-in probes as well as ``prompts``.
        quick: run one short batch only.
        context: run one more text, of so many tokens, and tell its figures by position; ``max`` is
            the model's own context.
        max_memory: memory limit on the scan's device, in bytes; None uses all free memory.
        resident: keep all weights in memory, once for each dtype, instead of reading them when
            they are needed. A live module's always are.
        accumulations: what kernels accumulate matrix products in; ``float16`` adds a run that shows
            what such a kernel would do. None: both for GPTQ and AWQ, otherwise float32.
        kv_cache_dtypes: formats of the key-value cache (``fp8_e4m3``), a run more for each, in the
            dtype and attention that would be deployed; ``all`` for every one.
        quantizations: formats of the weights (``int4``), in the same way.
        prove: bound every operation of the 16-bit runs over all inputs, from the weights:
            ``headroom[].status``, ``runs[].proof``.
        prove_minutes: with ``prove``, look that long for better bounds where one does not fit.
        generate: tokens to generate after each prompt, greedy and sampled, in every run.
        capsule: folder for the layer that overflows, with a script that reproduces it without the
            model; nothing is written if nothing overflows.
        static: run nothing; use config, headers, small tensors and documented facts. Of a Hub id
            nothing else is downloaded.
        full: with ``static``, read all weights.
        stream: read the weights of a Hub id when they are needed, and store nothing.
        observe: receives progress.

    Raises:
        UsageError: a name, a prompt or a device that cannot be used.
        PrecheckError: the checkpoint or the device does not allow a scan.
        ScanInterrupted: Ctrl-C; ``partial`` is the report on what was measured so far.
    """
    from precheck.libraries import check_libraries

    check_libraries()
    for gpu in each_of(gpus):
        devices.find(gpu)  # an unknown name is worth knowing before a long scan
    prompts = None if prompts is None else each_of(prompts)
    check_text(prompts or ())
    # torch and transformers take seconds to import; precheck --help does not wait for them.
    from precheck.measure.request import Request, check_request

    if max_memory is not None and not isinstance(max_memory, int):
        raise UsageError(
            f"max_memory is {max_memory!r} (expected bytes)", hint="max_memory=4 * 2**30"
        )
    observe = observe or _ignore
    named = [name for name in each_of(dtypes) if name != "auto"]
    request = Request(
        dtypes=tuple(Dtype) if dtypes is None else tuple(map(as_dtype, named)),
        with_own_dtype=len(named) < len(each_of(dtypes)),
        attn_implementations=as_attentions(attn_implementations),
        required=tuple(map(as_configuration, each_of(require))),
        prompts=prompts,
        builtin_probes=builtin_probes,
        quick=quick,
        context=as_context(context),
        device=device,
        max_memory=max_memory,
        is_resident=resident,
        is_static=static,
        is_full=full,
        is_streamed=stream,
        proves=prove or prove_minutes > 0,
        proof_minutes=prove_minutes,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        num_generated=as_num_generated(generate),
        accumulations=as_accumulations(accumulations),
        kv_cache_dtypes=format_names.cache_names(each_of(kv_cache_dtypes)),
        quantizations=format_names.weight_names(each_of(quantizations)),
        format_limit=LOST_IN_ONE_PART.value,
        capsule=None if capsule is None else Path(capsule),
    )
    check_combination(model, request)
    if tokenizer is not None and isinstance(model, str | Path):
        raise UsageError(
            "a tokenizer for a checkpoint (expected only with a live module)",
            hint="omit tokenizer: the checkpoint's own is used",
        )
    check_request(request)
    subject = _subject(
        model,
        tokenizer=tokenizer,
        revision=revision,
        trust_remote_code=trust_remote_code,
        allow_pickle=allow_pickle,
        access=_access(request),
        observe=observe,
    )
    return judged(subject, request, gpus=each_of(gpus), observe=observe)


def judged(
    subject: Subject, request: Request, *, gpus: Sequence[str] = (), observe: Observer
) -> Report:
    """Measures a subject and judges what was measured: the one way to a report.

    Args:
        subject: a checkpoint or a live module.
        request: what to measure.
        gpus: advise for these instead of the device that was found.
        observe: receives progress.

    Raises:
        PrecheckError: the checkpoint or the device does not allow a scan.
        ScanInterrupted: Ctrl-C; ``partial`` is the report on what was measured so far.
    """
    from precheck.measure.measure import measure

    report_on = partial(judge, gpus=tuple(gpus), version=__version__)
    try:
        measurements = measure(subject, request, observe=observe)
    except ScanInterrupted as interrupted:
        if not isinstance(interrupted.partial, Measurements):
            raise
        raise ScanInterrupted(report_on(interrupted.partial)) from interrupted
    try:
        return report_on(measurements)
    except KeyboardInterrupt as interrupted:  # judging takes no time, and measuring did
        raise ScanInterrupted(report_on(measurements)) from interrupted


def weigh(first: str, second: str, *, quick: bool = False, observe: Observer) -> WeightsCost:
    """What other weights of a model cost: KL divergence, and the error of every layer.

    The one that is quantised is compared with the other; of two of a kind, the first with the
    second.

    Args:
        first: a folder, a GGUF file, or a Hub id.
        second: the same model with other weights.
        quick: run one short batch only.
        observe: receives progress.

    Raises:
        UsageError: they are not the same model.
        PrecheckError: one of them cannot be loaded or run.
    """
    from precheck.libraries import check_libraries

    check_libraries()
    from precheck.measure.against import weigh as measured
    from precheck.measure.request import Request

    other, reference = (_opened(name, observe=observe) for name in (first, second))
    if other.quantization is None and reference.quantization is not None:
        other, reference = reference, other
    request = Request(dtypes=(Dtype.FLOAT32,), quick=quick, accumulations=())
    return judged_cost(measured(reference, other, request, observe=observe))


def watch(model: nn.Module, *, sample_every: int = 1) -> Watch:
    """Watches a live model inside a ``with`` block, and names the first operation that breaks.

    Args:
        model: a transformers model, or any module whose layers are in one list.
        sample_every: watch one forward in this many, for serving.

    Raises:
        UsageError: ``sample_every`` is not positive.
        UnsupportedModelError: no decoder layers were found.

    Example:
        ``with precheck.watch(model) as watch: model.generate(**inputs)``, then
        ``watch.first_overflow`` and ``watch.broken_forward``
    """
    from precheck.measure.blame.live import Watch

    return Watch(model, sample_every=sample_every)


def _subject(
    model: str | Path | nn.Module,
    *,
    tokenizer: object,
    revision: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    access: Access,
    observe: Observer,
) -> Subject:
    from precheck.checkpoint.source import open_checkpoint
    from precheck.measure.subject.subject import CheckpointSubject, LiveSubject

    if not isinstance(model, str | Path):
        check_module(model)
        return LiveSubject(model, tokenizer)
    return CheckpointSubject(
        open_checkpoint(
            str(model),
            revision=revision,
            trust_remote_code=trust_remote_code,
            allow_pickle=allow_pickle,
            access=access,
            observe=observe,
        )
    )


def _access(request: Request) -> Access:
    """Where the weights of a repository are read."""
    from precheck.checkpoint.source import Access

    if request.is_static and not request.is_full:
        return Access.DESCRIBED
    return Access.STREAMED if request.is_streamed else Access.DOWNLOADED


def _opened(name: str, *, observe: Observer) -> CheckpointSubject:
    from precheck.checkpoint.source import open_checkpoint
    from precheck.measure.subject.subject import CheckpointSubject

    return CheckpointSubject(open_checkpoint(name, observe=observe))


def _ignore(_event: Announcement | Step) -> None:
    """Observe nothing."""
