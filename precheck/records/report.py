"""The report: everything measured and judged, as the JSON contract ``precheck/1`` has it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import msgspec

from precheck.errors import ReportError
from precheck.records.advice import Recommendation
from precheck.records.answers import Embedding
from precheck.records.configuration import Configuration
from precheck.records.finding import VERBS, Finding, Verdict
from precheck.records.outcomes.coverage import Coverage
from precheck.records.outcomes.layer_bounds import LayerBound
from precheck.records.plain import check_bounds, check_schema, written_by
from precheck.records.plain import plain as plain_data
from precheck.records.precision import Accumulation, Dtype
from precheck.records.quantities import python_string
from precheck.records.sizes import AttentionFacts, CacheSize, KeyValueRange, OperandPeak, Widths
from precheck.records.stored import CheckpointAudit
from precheck.records.traces import Headroom, Overflow, Probe, RunTrace

SCHEMA = "precheck/1"


def deployed_dtype(declared: str | None, tensor_dtypes: dict[str, int]) -> str | None:
    """The declared dtype, else the floating-point one that most stored elements have.

    >>> deployed_dtype(None, {"bfloat16": 7, "float32": 2, "int64": 9})
    'bfloat16'
    """
    if declared is not None:
        return declared
    floating = {name: size for name, size in tensor_dtypes.items() if "float" in name}
    return max(floating, key=floating.__getitem__, default=None)


def deployed_configuration(dtype: str | None, *, attn_implementation: str) -> Configuration | None:
    """The configuration of this dtype and attention; None if the dtype is not measured."""
    if dtype not in set(Dtype):
        return None
    return Configuration(dtype=Dtype(dtype), attn_implementation=attn_implementation)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The model, by its checkpoint's config and headers."""

    id: str
    revision: str | None
    architecture: str
    model_type: str
    decoder_layers: str
    """Name of the repeated block's list, ``model.layers``."""
    num_decoder_layers: int
    num_parameters: int
    declared_dtype: str | None
    """``dtype`` of the config; None when it has none."""
    tensor_dtypes: dict[str, int]
    """Number of stored elements by dtype name."""
    quantization: dict[str, Any] | None = None
    default_attn_implementation: str | None = None
    max_context: int | None = None
    attention: AttentionFacts | None = None
    """None in reports of earlier versions."""
    cache: CacheSize | None = None
    """None if the config does not show it, and for models without a cache."""
    widths: Widths | None = None
    generates: bool = True
    """Whether it generates text; otherwise its answers are scores or embeddings."""
    embedding: Embedding | None = None
    """What is done with the hidden states of a model that has no head and generates nothing."""
    clamps: tuple[str, ...] = ()
    """Lines of modeling code that clamp values to a dtype's range: ``modeling_t5.py:151``."""

    @property
    def deployed(self) -> Configuration | None:
        """What ``from_pretrained(dtype="auto")`` would run; None if its dtype is not measured.

        Its attention implementation is empty where the model's default is not known.
        """
        return deployed_configuration(
            self.deploy_dtype, attn_implementation=self.default_attn_implementation or ""
        )

    @property
    def local_id(self) -> str:
        """What to type where the model is loaded; a built-in one is a folder once it is saved."""
        return self.id.replace("demo:", "./", 1) if self.id.startswith("demo:") else self.id

    @property
    def gguf_file(self) -> str | None:
        """The name of the GGUF file that all of it is in; None of an ordinary checkpoint."""
        settings = self.quantization or {}
        return str(settings["gguf_file"]) if settings.get("quant_method") == "gguf" else None

    @property
    def load_id(self) -> str:
        """What transformers loads: the folder or repository, also of a GGUF file.

        >>> ModelFacts(id="owner/name:a.gguf", quantization={"quant_method": "gguf",
        ...     "gguf_file": "a.gguf"}, revision=None, architecture="", model_type="",
        ...     decoder_layers="", num_decoder_layers=1, num_parameters=1, declared_dtype=None,
        ...     tensor_dtypes={}).load_id
        'owner/name'
        """
        name = self.gguf_file
        if name is None or not self.id.endswith(name):
            return self.local_id
        return self.id.removesuffix(f":{name}").removesuffix(name).rstrip("/") or "."

    @property
    def load_arguments(self) -> str:
        """The arguments of ``from_pretrained`` that name it, as Python."""
        name = "" if self.gguf_file is None else f", gguf_file={python_string(self.gguf_file)}"
        return f"{python_string(self.load_id)}{name}"

    @property
    def auto_class(self) -> str:
        """The class of transformers to load it with."""
        if self.architecture.endswith("ForCausalLM"):
            return "AutoModelForCausalLM"
        return self.architecture if self.architecture.isidentifier() else "AutoModel"

    @property
    def deploy_dtype(self) -> str | None:
        """What ``from_pretrained(dtype="auto")`` would load: config, else the stored tensors'."""
        return deployed_dtype(self.declared_dtype, self.tensor_dtypes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that was found or named."""

    name: str
    kind: str
    """``cpu``, ``cuda``, ``rocm``, ``mps`` or ``xpu``."""
    compute_capability: str | None = None
    """``sm_75`` and so on, ``gfx942`` for AMD; None elsewhere."""
    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    driver: str | None = None
    """Version of the driver."""
    features: tuple[str, ...] = ()
    """Of a CPU: instruction sets for 16-bit numbers and what they build on, as torch names them."""
    is_usable: bool = True
    """Whether the installed torch can run on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where the scan ran."""

    python: str
    platform: str
    cpu: str
    num_threads: int
    memory_bytes: int
    libraries: dict[str, str]
    """Version by distribution name."""
    devices: tuple[Device, ...] = ()
    """Accelerators found, the CPU last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What every run is compared with."""

    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """All facts of a scan, before anything is judged."""

    model: ModelFacts
    checkpoint: CheckpointAudit
    environment: Environment
    probes: tuple[Probe, ...]
    coverage: Coverage
    runs: tuple[RunTrace, ...]
    headroom: tuple[Headroom, ...]
    seed: int
    options: tuple[str, ...] = ()
    """Flags of the command that change the scan besides dtypes, attention and device."""
    complete: bool = True
    incomplete_reason: str | None = None
    """Why ``complete`` is false."""
    is_static: bool = False
    """Nothing was run: config, headers and weights were read."""
    key_values: tuple[KeyValueRange, ...] = ()
    operands: tuple[OperandPeak, ...] = ()
    layer_bounds: tuple[LayerBound, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(RunTrace):
    """A run with its verdict."""

    verdict: Verdict
    reason: str | None = None
    first_overflow: Overflow | None = None

    @property
    def effect(self) -> str:
        """What happens, behind the run's name: ``overflows in layer 3``."""
        first = self.first_overflow
        is_placed = self.verdict is Verdict.OVERFLOW and first is not None and first.place
        return f"{VERBS[self.verdict]}{f' in {first.place}' if first and is_placed else ''}"

    @property
    def outcome(self) -> str:
        """The effect and the reason: ``overflows in layer 3: ...``."""
        if self.verdict is Verdict.LOW_HEADROOM and self.reason:
            return f"has {self.reason}"
        is_told = self.verdict not in {Verdict.SAFE, Verdict.INCOMPLETE} and self.reason
        return f"{self.effect}: {self.reason}" if is_told else self.effect

    @classmethod
    def judged(
        cls,
        trace: RunTrace,
        *,
        verdict: Verdict,
        reason: str | None,
        first_overflow: Overflow | None,
    ) -> Run:
        """The trace with its verdict."""
        measured = {field.name: getattr(trace, field.name) for field in fields(RunTrace)}
        return cls(**measured, verdict=verdict, reason=reason, first_overflow=first_overflow)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Report:
    """The whole scan; field names are the JSON contract."""

    schema: str = SCHEMA
    precheck_version: str
    complete: bool
    seed: int
    model: ModelFacts
    checkpoint: CheckpointAudit
    environment: Environment
    probes: tuple[Probe, ...]
    coverage: Coverage
    reference: Reference = field(default_factory=Reference)
    runs: tuple[Run, ...]
    headroom: tuple[Headroom, ...]
    findings: tuple[Finding, ...]
    recommendation: Recommendation | None
    other_recommendations: tuple[Recommendation, ...] = ()
    """For the other devices that were named, or the usual ones if there is no accelerator."""
    incomplete_reason: str | None = None
    options: tuple[str, ...] = ()
    """Flags of the command that change the scan besides dtypes, attention and device."""
    is_static: bool = False
    """Nothing was run: config, headers and weights were read, and all advice is predicted."""
    key_values: tuple[KeyValueRange, ...] = ()
    operands: tuple[OperandPeak, ...] = ()
    layer_bounds: tuple[LayerBound, ...] = ()
    """Of a static scan: what is proved of decoder layers from small tensors."""

    def __repr__(self) -> str:
        """One line: a report has a thousand fields."""
        runs = ", ".join(f"{run.name}: {run.verdict}" for run in self.runs)
        return f"<precheck report on {self.model.id}: {runs or 'nothing was run'}>"

    def _repr_html_(self) -> str:
        """The HTML report in a frame: what a notebook shows."""
        # only a notebook asks for it, and records know no renderer otherwise
        from precheck.render.formats.notebook import framed  # noqa: PLC0415

        return framed(self)

    def findings_of(self, run: Run) -> tuple[Finding, ...]:
        """The findings about one of its runs."""
        index = next(number for number, other in enumerate(self.runs) if other is run)
        return tuple(finding for finding in self.findings if index in finding.runs)

    @property
    def deployable(self) -> tuple[Configuration, ...]:
        """Configurations that were run, as they can be required; none with sums in float16."""
        runs = (run.requested for run in self.runs if run.failure is None)
        return tuple(one for one in runs if one.accumulation is Accumulation.FLOAT32)

    @property
    def measurements(self) -> Measurements:
        """What was measured, as it was before it was judged."""
        return Measurements(**{row.name: getattr(self, row.name) for row in fields(Measurements)})

    @property
    def recommendations(self) -> tuple[Recommendation, ...]:
        """For every device that was named, the most important first."""
        foremost = () if self.recommendation is None else (self.recommendation,)
        return (*foremost, *self.other_recommendations)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for ``json.dumps``."""
        return plain_data(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Report:
        """The report that ``to_dict`` gave, of this version or an earlier one of the schema.

        Fields that a later version added are left out; those added since an earlier one are as if
        nothing had been measured there.

        Raises:
            ReportError: another major schema, another tool's file, or fields that are missing, of
                another type, or that point to a run that is not there.
        """
        check_schema(plain, SCHEMA)
        try:
            check_bounds(plain)
            report = msgspec.convert(plain, cls)
        # UnicodeEncodeError is a ValueError: half a surrogate pair where a word is expected
        except (msgspec.ValidationError, ValueError) as error:
            raise ReportError(
                f"report not readable: {error}", hint=written_by(plain) or "scan again"
            ) from error
        runs = range(len(report.runs))
        for number, finding in enumerate(report.findings):
            if any(index not in runs for index in finding.runs):
                raise ReportError(
                    f"report not readable: finding {number} refers to a run that does not exist "
                    f"(expected indices below {len(runs)}) - at `$.findings[{number}].runs`",
                    hint="scan again; reports are not meant to be edited by hand",
                )
        return report
