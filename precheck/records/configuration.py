"""What a run is: the one place that knows.

Another way in which runs can vary is a field here whose default means "not varied", its spelling in
``parse`` and ``__str__``, and a field of the same name in the records that JSON holds: ``RunTrace``
and, where it can be advised, ``Recommendation`` and ``Rejected``. What matches, counts, ranks or
names runs asks here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Self

from precheck.errors import UsageError
from precheck.records.precision import Accumulation, Dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What a run is, or was requested to be: dtype, attention implementation, and what else varies.

    >>> print(Configuration.parse("fp16+sdpa"))
    float16 + sdpa
    """

    dtype: Dtype
    attn_implementation: str
    accumulation: Accumulation = Accumulation.FLOAT32
    kv_cache_dtype: str | None = None
    """Format in which keys and values are stored; None: in the dtype."""
    quantization: str | None = None
    """Format of weights, and of activations where it has one; None: the dtype."""

    @classmethod
    def of(cls, record: object) -> Self:
        """The configuration of a record with fields of the same names, such as a run.

        What the record has no field for is not varied in it.
        """
        names = [field.name for field in fields(cls) if hasattr(record, field.name)]
        return cls(**{name: getattr(record, name) for name in names})

    @classmethod
    def parse(cls, text: str) -> Self:
        """The configuration written as ``DTYPE+ATTN``, or ``DTYPE`` for the default attention.

        Formats follow, each at most once: ``+kv:FORMAT`` of the key-value cache, ``+q:FORMAT`` of
        the weights.

        >>> print(Configuration.parse("bf16 + sdpa + kv:fp8_e4m3"))
        bfloat16 + sdpa + kv:fp8_e4m3

        Raises:
            UsageError: it is not written so, or there is no such dtype.
        """
        dtype, *parts = (part.strip() for part in text.split("+"))
        formats = {
            prefix: [part.removeprefix(prefix) for part in parts if part.startswith(prefix)]
            for prefix in _FORMATS
        }
        named = [part for part in parts if not part.startswith(tuple(_FORMATS))]
        values = [dtype, *named, *(value for of_kind in formats.values() for value in of_kind)]
        if not all(values) or "," in text or max(map(len, (named, *formats.values()))) > 1:
            raise UsageError(
                f"not a configuration: {text!r} (expected DTYPE, DTYPE+ATTN, and after it"
                " +kv:FORMAT or +q:FORMAT)",
                hint="write it like --require float16+sdpa",
            )
        return cls(
            dtype=Dtype.named(dtype.lower()),
            attn_implementation=next(iter(named), ""),
            kv_cache_dtype=next(iter(formats["kv:"]), None),
            quantization=next(iter(formats["q:"]), None),
        )

    @property
    def is_plain(self) -> bool:
        """Whether nothing varies but dtype and attention: what a user loads and deploys."""
        plain = type(self)(dtype=self.dtype, attn_implementation=self.attn_implementation)
        return self == plain

    @property
    def is_reference(self) -> bool:
        """Whether other runs are compared with it: float32, and nothing varied."""
        return self == self.reference

    @property
    def reference(self) -> Self:
        """The configuration it is compared with: float32 with the same attention.

        >>> print(Configuration.parse("fp16+eager").reference)
        float32 + eager
        """
        return type(self)(dtype=Dtype.FLOAT32, attn_implementation=self.attn_implementation)

    @property
    def has_format(self) -> bool:
        """Whether the key-value cache, weights or activations are stored in a format."""
        return self.formats != ()

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats as they are written: ``kv:fp8_e4m3``, ``q:int4``."""
        return tuple(
            f"{prefix}{value}"
            for prefix, field in _FORMATS.items()
            if (value := getattr(self, field)) is not None
        )

    @property
    def without_formats(self) -> Self:
        """The same with everything stored in the dtype."""
        return replace(self, kv_cache_dtype=None, quantization=None)

    def with_attention(self, attn_implementation: str) -> Self:
        """The same with another attention implementation."""
        return replace(self, attn_implementation=attn_implementation)

    def as_fields(self, record: type[Any] | None = None) -> dict[str, Any]:
        """Its fields by name, for a record that has the same.

        Args:
            record: only those that this dataclass has too; None: all.
        """
        names = {field.name for field in fields(self if record is None else record)}
        return {
            field.name: getattr(self, field.name) for field in fields(self) if field.name in names
        }

    def __str__(self) -> str:
        attn = f" + {self.attn_implementation}" if self.attn_implementation else ""
        sums = " (float16 sums)" if self.accumulation is Accumulation.FLOAT16 else ""
        return " + ".join((f"{self.dtype}{attn}{sums}", *self.formats))


_FORMATS = {"kv:": "kv_cache_dtype", "q:": "quantization"}
"""How formats are written in a configuration, and their fields."""
