"""Which configurations become runs: requested, required by the gate, and the references."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from precheck.errors import UnsupportedConfigurationError, UsageError, unknown
from precheck.facts import attention
from precheck.records.attention import as_argument, is_split, parts_of
from precheck.records.configuration import Configuration
from precheck.records.precision import Accumulation, Dtype
from precheck.records.traces import RunTrace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from precheck.measure.models.shared import SharedModels
    from precheck.measure.models.skeleton import Skeleton


@dataclass(slots=True, eq=False, kw_only=True)
class RunGroup:
    """The runs of one attention implementation; ``reference`` is their float32 run."""

    reference: Skeleton
    others: list[Skeleton]

    @property
    def skeletons(self) -> list[Skeleton]:
        """Every run, the reference first."""
        return [self.reference, *self.others]


def check_attention_name(name: str, *, trust_remote_code: bool) -> None:
    """Refuses a name that transformers cannot know.

    Raises:
        UsageError: an unknown name, or a kernel of the Hub (which is code) without permission.
    """
    if is_split(name):
        for _, part in parts_of(as_argument(name)):
            check_attention_name(part, trust_remote_code=trust_remote_code)
    elif "/" in name:
        if not trust_remote_code:
            raise UsageError(
                f"attention kernel from the Hub: {name!r} (it is code, and would run here)",
                hint="allow it with --trust-remote-code",
            )
    elif name not in attention.names():
        hint = "kernels from the Hub are named owner/name"
        raise unknown("attention implementation", name, attention.names(), hint=hint)


def build_groups(
    models: SharedModels,
    *,
    dtypes: tuple[Dtype, ...],
    attn_implementations: tuple[str, ...] | None,
    required: tuple[Configuration, ...],
    device: str,
    accumulations: frozenset[Accumulation],
    cache_scales: Mapping[str, float],
) -> tuple[list[RunGroup], list[RunTrace]]:
    """Skeletons by attention implementation, and a trace for each run that cannot be made.

    Names that stand for the same implementation are run once. Sums in float16 are measured for
    float16 with the default attention. Beside a run with a format is the same one without.
    """
    default, of_class = models.default_attention(), models.class_attention()
    names = attn_implementations or tuple(dict.fromkeys((default, of_class, "eager")))
    requested: dict[str, list[Dtype]] = {name: list(dtypes) for name in names}
    for configuration in required:
        of_name = requested.setdefault(configuration.attn_implementation, [])
        if configuration.dtype not in of_name:
            of_name.append(configuration.dtype)
    groups: dict[str, RunGroup] = {}
    failed: list[RunTrace] = []
    for name, requested_dtypes in requested.items():
        try:
            if (reason := attention.why_unwatchable(name)) is not None:
                raise UnsupportedConfigurationError(reason)  # noqa: TRY301
            reference = models.skeleton(Dtype.FLOAT32, name)
        except UnsupportedConfigurationError as error:
            failed += [
                _failed(Configuration(dtype=dtype, attn_implementation=name), device, error.message)
                for dtype in requested_dtypes
            ]
            continue
        group = groups.setdefault(
            reference.attn_implementation, RunGroup(reference=reference, others=[])
        )
        present = {skeleton.dtype for skeleton in group.skeletons}
        group.others += [
            models.skeleton(dtype, name)
            for dtype in Dtype
            if dtype in requested_dtypes and dtype not in present
        ]
        formats = dict.fromkeys(  # one may be asked for by its flag and be required too
            one for one in required if one.has_format and one.attn_implementation == name
        )
        added = (_add_format(group, one, device, cache_scales) for one in formats)
        failed += filter(None, added)
    if Accumulation.FLOAT16 in accumulations and default in groups:
        group = groups[default]
        group.others += [
            skeleton.accumulating_in_float16()
            for skeleton in group.others
            if skeleton.dtype is Dtype.FLOAT16 and not skeleton.configuration.has_format
        ]
    return list(groups.values()), failed


def _add_format(
    group: RunGroup, configuration: Configuration, device: str, scales: Mapping[str, float]
) -> RunTrace | None:
    """Adds the run with a format beside the same one without; a trace where that cannot be."""
    plain = next(run for run in group.skeletons if run.dtype is configuration.dtype)
    try:
        group.others.append(plain.with_formats(configuration, cache_scales=scales))
    except UnsupportedConfigurationError as error:
        return _failed(configuration, device, error.message)
    return None


def _failed(configuration: Configuration, device: str, reason: str) -> RunTrace:
    return RunTrace(
        **configuration.as_fields(),
        requested_attn_implementation=configuration.attn_implementation,
        device=device,
        failure=reason,
    )
