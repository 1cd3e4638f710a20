"""Ways to serve a model, and whether a configuration that was named is the one that was served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from benchmarks.served.servers import llama_cpp, transformers_serve, vllm
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from precheck.records.outcomes.served import Served

EngineKind = Literal["vllm", "llama", "transformers"]
OWN_KERNELS = ("sdpa",)
"""To compare with an engine that has attention kernels of its own: eager is another of ours."""
FORMATS: dict[EngineKind, tuple[str, ...]] = {
    "vllm": (
        "bfloat16+sdpa+kv:fp8_e4m3",
        "bfloat16+sdpa+kv:fp8_e4m3_rz",
        "bfloat16+sdpa+kv:fp8_e5m2_rz",
    ),
    "llama": ("float16+sdpa+kv:q8_0", "float16+sdpa+q:q8_0"),
    "transformers": (),
}
"""Measured besides the dtypes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to serve a model."""

    engine: EngineKind
    weights: str
    """Dtype; of llama.cpp a type of GGUF's."""
    cache: str = "auto"
    attention: str = ""
    """transformers' attention implementation, or llama.cpp's flash attention."""
    is_right: tuple[str, ...]
    """Configurations that may be named, with any attention where none is said; none: none fits."""

    @property
    def attn_implementations(self) -> tuple[str, ...]:
        """Those to compare with."""
        return ("sdpa", "eager") if self.engine == "transformers" else OWN_KERNELS

    def __str__(self) -> str:
        """As it stands in the table."""
        cache = "" if self.cache == "auto" else f", cache {self.cache}"
        return f"{self.engine} {self.weights}{cache}{self.attention and f', {self.attention}'}"

    def serving(self, python: str, model: str) -> AbstractContextManager[str]:
        """The address of the engine, while it runs."""
        match self.engine:
            case "vllm":
                return vllm(python, model, dtype=self.weights, cache=self.cache)
            case "llama":
                return llama_cpp(
                    python, model=model, cache=self.cache, flash_attention=self.attention
                )
            case "transformers":
                return transformers_serve(
                    python, model, dtype=self.weights, attention=self.attention
                )

    def allows(self, named: Configuration) -> bool:
        """Whether it is the one that was served."""
        wanted = map(Configuration.parse, self.is_right)
        return any(
            one == (named if one.attn_implementation else named.with_attention(""))
            for one in wanted
        )

    def judged(self, served: Served) -> str:
        """``right``, ``not told apart`` or ``wrong``."""
        if not served.like:
            return "wrong" if self.is_right else "right"
        found = [self.allows(one) for one in served.like]
        if all(found):
            return "right"
        return "not told apart" if any(found) else "wrong"

    def ratio(self, served: Served) -> float | None:
        """How far apart the nearest that is right and the nearest other are, 1 or more."""
        far = {True: [], False: []}  # type: dict[bool, list[float]]
        for row in served.distances:
            values = [each for each in (row.prefill, row.decoded) if each is not None]
            if values:
                far[self.allows(row.configuration)].append(max(values))
        if not (far[True] and far[False]):
            return None
        near = sorted((min(far[True]), min(far[False])))
        return near[1] / max(near[0], 1e-12)


WAYS = (
    *(
        Way(engine="vllm", weights=dtype, is_right=(dtype,))
        for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32)
    ),
    *(
        Way(engine="vllm", weights="bfloat16", cache=cache, is_right=(f"bfloat16+kv:{cache}_rz",))
        for cache in ("fp8_e4m3", "fp8_e5m2")
    ),
    *(
        Way(engine="llama", weights=kind, cache=cache, attention=flash, is_right=right)
        for kind, cache, flash, right in (
            ("F32", "f32", "on", ("float32",)),
            ("F32", "f32", "off", ("float32",)),
            ("F16", "f16", "on", ("float16",)),
            ("BF16", "f16", "on", ("bfloat16",)),
            ("F16", "q8_0", "on", ("float16+kv:q8_0",)),
            ("Q8_0", "f16", "on", ("float16+q:q8_0",)),
            ("Q4_1", "f16", "on", ()),
            ("Q4_K", "f16", "on", ()),
        )
    ),
    *(
        Way(
            engine="transformers",
            weights=dtype,
            attention=attention,
            is_right=(f"{dtype}+{attention}",),
        )
        for dtype in (Dtype.BFLOAT16, Dtype.FLOAT16, Dtype.FLOAT32)
        for attention in ("eager", "sdpa")
    ),
)
