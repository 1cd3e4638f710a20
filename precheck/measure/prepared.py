"""The models of all configurations, ready to run, and what they have in common."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from precheck.checkpoint.architecture import find_architecture
from precheck.checkpoint.faults.scales import cache_scales
from precheck.errors import UnsupportedModelError, UsageError
from precheck.facts.formats import cache_format
from precheck.measure.machine.torch_settings import uncompiled
from precheck.measure.models.configurations import build_groups
from precheck.measure.subject.model_facts import model_facts
from precheck.records.configuration import Configuration
from precheck.records.precision import Accumulation, Dtype
from precheck.records.report import deployed_configuration, deployed_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from precheck.checkpoint.architecture import Architecture
    from precheck.measure.models.configurations import RunGroup
    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton
    from precheck.measure.request import Request
    from precheck.measure.subject.subject import Subject
    from precheck.records.report import ModelFacts
    from precheck.records.traces import RunTrace


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What is to be scanned and how, and a model for every run."""

    subject: Subject
    request: Request
    device: str
    """As torch names it."""
    models: SharedModels
    groups: tuple[RunGroup, ...]
    """Runs by attention implementation; there is at least one group."""
    failed: tuple[RunTrace, ...]
    """Runs that cannot be, and why."""
    layout: Architecture
    facts: ModelFacts

    @property
    def reference(self) -> Skeleton:
        """The first float32 run: its model stands for all."""
        return self.groups[0].reference

    @property
    def skeletons(self) -> tuple[Skeleton, ...]:
        """Every run, in the order of the report."""
        return tuple(skeleton for group in self.groups for skeleton in group.skeletons)


@contextmanager
def prepare(subject: Subject, request: Request, *, device: str) -> Iterator[Prepared]:
    """Makes the model of every configuration; threads and files are closed at the end.

    Raises:
        UnsupportedModelError: no run is possible, or the model has no repeated block.
        PrecheckError: the checkpoint does not load.
    """
    with closing(subject.models(device=device, is_resident=request.is_resident)) as models:
        default = models.default_attention()
        dtypes = _dtypes(subject, request)
        required = (
            *_required(subject, request, default),
            *_with_formats(subject, request, dtypes, default),
        )
        groups, failed = build_groups(
            models,
            dtypes=dtypes,
            attn_implementations=request.attn_implementations,
            required=required,
            device=device,
            accumulations=_accumulations(subject, request),
            cache_scales=_cache_scales(subject, required),
        )
        with uncompiled():  # code of the checkpoint may have compiled while it was loaded
            if not groups:
                raise UnsupportedModelError(
                    f"no run is possible: {failed[0].failure}", hint=f"use --attn {default}"
                )
            model = groups[0].reference.model
            layout = find_architecture(model)
            facts = model_facts(subject, model=model, layout=layout, default_attention=default)
            yield Prepared(
                subject=subject,
                request=request,
                device=device,
                models=models,
                groups=tuple(groups),
                failed=tuple(failed),
                layout=layout,
                facts=facts,
            )


def _accumulations(subject: Subject, request: Request) -> frozenset[Accumulation]:
    """Float32 by default, and float16 too where kernels for packed weights may use it."""
    if request.accumulations is not None:
        return frozenset(request.accumulations)
    return frozenset(Accumulation if subject.may_add_up_in_float16 else {Accumulation.FLOAT32})


def _dtypes(subject: Subject, request: Request) -> tuple[Dtype, ...]:
    """Those that were named, and the checkpoint's own where ``auto`` was among them.

    Raises:
        UsageError: its own is not one of those that are measured.
    """
    if not request.with_own_dtype:
        return request.dtypes
    own = deployed_dtype(subject.declared_dtype, subject.tensor_dtypes)
    if own not in set(Dtype):
        raise UsageError(
            f"the checkpoint's own dtype is not measured: {own} (expected {', '.join(Dtype)})",
            hint="name the dtypes: --dtype float16,bfloat16",
        )
    return tuple(dict.fromkeys((*request.dtypes, Dtype(own))))


def _required(
    subject: Subject, request: Request, default_attention: str
) -> tuple[Configuration, ...]:
    """What the gate judges: what was required, else what ``from_pretrained(dtype="auto")`` runs."""
    if request.required:
        return tuple(
            configuration.with_attention(configuration.attn_implementation or default_attention)
            for configuration in request.required
        )
    dtype = deployed_dtype(subject.declared_dtype, subject.tensor_dtypes)
    configuration = deployed_configuration(dtype, attn_implementation=default_attention)
    return () if configuration is None else (configuration,)


def _with_formats(
    subject: Subject, request: Request, dtypes: tuple[Dtype, ...], default_attention: str
) -> Iterator[Configuration]:
    """A configuration for each format, in the measured 16-bit dtype that engines would choose.

    That is the checkpoint's own; of one in float32 it is bfloat16, as all engines but transformers
    do.
    """
    own = deployed_dtype(subject.declared_dtype, subject.tensor_dtypes)
    preferred = (own, Dtype.BFLOAT16, Dtype.FLOAT16)
    halves = [name for name in preferred if name in dtypes and Dtype(name).is_half]
    dtype = Dtype(next(iter((*halves, *dtypes))))
    attention = next(iter(request.attn_implementations or ()), default_attention)
    plain = Configuration(dtype=dtype, attn_implementation=attention)
    for name in request.kv_cache_dtypes:
        yield replace(plain, kv_cache_dtype=name)
    for name in request.quantizations:
        yield replace(plain, quantization=name)


def _cache_scales(
    subject: Subject, configurations: tuple[Configuration, ...]
) -> Mapping[str, float]:
    """The checkpoint's, where one of the configurations takes them."""
    names = {one.kv_cache_dtype for one in configurations} - {None}
    takes_them = any(cache_format(name or "").takes_stored_scales for name in names)
    if subject.checkpoint is None or not takes_them:
        return {}
    with subject.checkpoint.open_weights() as stored:
        return cache_scales(stored)
