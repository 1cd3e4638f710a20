"""The audit of the scales that a quantised checkpoint stores: small tensors, read without a run."""

from __future__ import annotations

import math
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from precheck.checkpoint.faults.scales import (
    CACHE_SCALES,
    GLOBAL_SCALES,
    INPUT_SCALES,
    is_divisor,
    needs_scale,
    scales_of,
    weight_name,
)
from precheck.checkpoint.faults.zeros import layer_of
from precheck.checkpoint.packed import as_float32
from precheck.records.finding import module_pattern
from precheck.records.stored import (
    CacheScale,
    InputRange,
    ScaleAudit,
    ScaleFault,
    ScaleFaultKind,
    ScaleRole,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from torch import Tensor

    from precheck.checkpoint.quantization import Quantization
    from precheck.checkpoint.triage.small import SmallParts
    from precheck.checkpoint.weights import Weights

_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
"""Kernels flush what is smaller, and its reciprocal is not finite."""
_SMALLEST_E4M3_NORMAL = 2.0**-6
_LARGEST_INPUT = {
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "int8": 127.0,
    "uint8": 6 * 448.0,
}
"""What an input is divided by its scale for, by the dtype that the weight is stored in.

Float4 is stored in uint8; its blocks have a scale in float8_e4m3fn of their own.
"""
_EXPONENTS = frozenset({"uint8", "float8_e8m0fnu"})


def audit_scales(
    stored: Weights,
    quantization: Quantization | None,
    *,
    owned: Collection[str],
    parts: SmallParts | None = None,
) -> ScaleAudit:
    """The audit of all scales, each read once.

    Args:
        stored: the checkpoint's tensors.
        quantization: what the config names.
        owned: parameters and buffers of the model, whatever they are called.
        parts: what may be read; then no weight is, so that scales that are zero or too small are
            found only where that does not depend on the weight. None: everything.
    """
    return _Auditor(stored, quantization, owned, parts).result()


class _Auditor:
    def __init__(
        self,
        stored: Weights,
        quantization: Quantization | None,
        owned: Collection[str],
        parts: SmallParts | None,
    ) -> None:
        self._stored = stored
        self._sampled = None if parts is None else parts.sampled
        """Elements to read of each scale that is not small."""
        self._small = frozenset() if parts is None else frozenset(parts.whole)
        self._quantization = quantization
        self._dtypes = stored.stored_dtypes()
        self._num_scales = 0
        self._num_stored = 0
        self._packed = {
            name.rpartition(".")[0]: dtype
            for name, dtype in self._dtypes.items()
            if needs_scale(name, dtype)
        }
        """The dtype of the packed weight of every linear."""
        self._free = {
            name: self._values(name)
            for name in self._dtypes
            if name not in owned and name.endswith((*INPUT_SCALES, *CACHE_SCALES))
        }
        """The scales of activations."""

    def result(self) -> ScaleAudit:
        """The audit."""
        faults = [*self._weight_faults(), *self._activation_faults()]
        return ScaleAudit(
            faults=tuple(faults),
            missing=tuple(self._missing()),
            cache_format=_cache_format(self._quantization),
            cache=tuple(self._cache()),
            inputs=tuple(self._inputs()),
            num_scales=self._num_scales,
            num_stored=self._num_stored,
        )

    def _values(self, name: str) -> Tensor:
        """The numbers of a scale, one dimension, float32."""
        num_stored = math.prod(self._stored.stored_shape(name))
        self._num_stored += num_stored
        if self._sampled is None or name in self._small:
            tensor = self._stored.stored_tensor(name)
        else:
            tensor = self._stored.stored_elements(name, self._sampled.get(name, 0))
        self._num_scales += tensor.numel()
        return as_float32(tensor).flatten()

    # Of weights.

    def _weight_faults(self) -> Iterator[ScaleFault]:
        for packed, dtype in self._dtypes.items():
            if not needs_scale(packed, dtype):
                continue
            module = packed.rpartition(".")[0]
            of_blocks = [name for name in scales_of(packed) if self._is_readable(name)]
            of_all = [f"{module}{end}" for end in GLOBAL_SCALES if f"{module}{end}" in self._dtypes]
            for name in of_blocks:
                yield from self._block_faults(name, weight_name(packed))
            for name in of_all:
                faults = _single_faults(self._values(name), is_divisor=is_divisor(name))
                yield from _faults(name, ScaleRole.WEIGHT, faults, weight=weight_name(packed))

    def _is_readable(self, name: str) -> bool:
        """Whether a scale is stored as a number; bitsandbytes quantises some of its own again."""
        dtype = self._dtypes.get(name)
        return dtype is not None and (dtype not in _EXPONENTS or not name.endswith("absmax"))

    def _block_faults(self, name: str, weight: str) -> Iterator[ScaleFault]:
        values = self._values(name)
        counts = {ScaleFaultKind.NOT_FINITE: ~values.isfinite()}
        is_known = self._sampled is None
        if is_known and self._dtypes[name] not in _EXPONENTS and bool((values == 0).any()):
            counts[ScaleFaultKind.ZERO] = self._losing(weight, values == 0)
        if self._dtypes[name] == "float8_e4m3fn":  # NVFP4
            counts[ScaleFaultKind.NEGATIVE] = values < 0
            if is_known:
                small = (values.abs() < _SMALLEST_E4M3_NORMAL) & (values != 0)
                counts[ScaleFaultKind.SUBNORMAL] = self._of_numbers(weight, small)
        yield from _faults(name, ScaleRole.WEIGHT, counts, weight=weight)

    def _losing(self, weight: str, zero: Tensor) -> Tensor:
        """Those zero scales, all or none, if numbers are lost that the weight had.

        A factor that is too small for its dtype is stored as zero by right. Then all that it
        scales, divided by it, is stored as the largest number of the format, or as zero.
        """
        numbers = self._stored.numbers_under(weight, zero)
        if numbers is None:
            return torch.zeros_like(zero)
        sizes = numbers.abs()
        return zero & bool(((sizes > 0) & (sizes < sizes.max())).any())

    def _of_numbers(self, weight: str, scales: Tensor) -> Tensor:
        """Those of the scales whose group has a number that is not zero."""
        numbers = self._stored.numbers_under(weight, scales) if bool(scales.any()) else None
        if numbers is None:
            return torch.zeros_like(scales)
        return numbers.view(scales.numel(), -1).any(1)

    # Of activations: a linear's input, keys and values.

    def _activation_faults(self) -> Iterator[ScaleFault]:
        for name, values in self._free.items():
            role = ScaleRole.INPUT if name.endswith(INPUT_SCALES) else ScaleRole.CACHE
            faults = _single_faults(values, is_divisor=is_divisor(name))
            yield from _faults(name, role, faults)

    def _missing(self) -> Iterator[str]:
        """Static scales of inputs that others have: experts of the layer, or most other layers."""
        for end in INPUT_SCALES:
            having = {name.removesuffix(end) for name in self._free if name.endswith(end)}
            if having:
                yield from (f"{module}{end}" for module in sorted(self._lacking(having)))

    def _lacking(self, having: Collection[str]) -> set[str]:
        lacking: set[str] = set()
        for linears in self._by(_kind_in_layer):
            without = linears - set(having)
            lacking |= without if without < linears else set()
        for linears in self._by(module_pattern):
            without = linears - set(having)
            lacking |= without if 2 * len(without) < len(linears) else set()
        return lacking

    def _by(self, kind: Callable[[str], str]) -> Iterable[set[str]]:
        """The packed linears of each kind."""
        kinds: defaultdict[str, set[str]] = defaultdict(set)
        for module in self._packed:
            kinds[kind(module)].add(module)
        return kinds.values()

    def _cache(self) -> Iterator[CacheScale]:
        for name, values in self._free.items():
            if not name.endswith(CACHE_SCALES):
                continue
            end = name.removesuffix(".output_scale").rpartition(".")[2]
            of_keys, of_values = end.startswith("k"), end.startswith(("v", "kv"))
            if (of_keys or of_values) and values.numel() and bool(values.isfinite().all()):
                yield CacheScale(
                    name=name,
                    of_keys=of_keys,
                    of_values=of_values,
                    smallest=float(values.min()),
                    largest=float(values.max()),
                )

    def _inputs(self) -> Iterator[InputRange]:
        """The largest inputs that the sound scales of each kind of linear in each layer allow."""
        kinds: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        for name, values in self._free.items():
            module = name.rpartition(".")[0]
            largest = _LARGEST_INPUT.get(self._packed.get(module, ""))
            if not name.endswith(INPUT_SCALES) or largest is None:
                continue
            faults = _single_faults(values, is_divisor=is_divisor(name)).values()
            sound = values[~torch.stack(list(faults)).any(0)]
            allowed = largest / sound if is_divisor(name) else largest * sound
            finite = allowed[allowed.isfinite()].tolist()
            kinds[_kind_in_layer(module)] += [(each, module) for each in finite]
        for linears in filter(None, kinds.values()):
            smallest, module = min(linears)
            yield InputRange(
                module=module,
                smallest=smallest,
                median=median(allowed for allowed, _ in linears),
                largest=max(linears)[0],
                num_linears=len(linears),
                num_inputs=self._num_inputs(f"{module}.weight"),
            )

    def _num_inputs(self, weight: str) -> int | None:
        return self._stored.shape(weight)[-1] if weight in self._stored else None


def _single_faults(values: Tensor, *, is_divisor: bool) -> dict[ScaleFaultKind, Tensor]:
    """Which of the scales that a kernel inverts are faulty."""
    multipliers = 1 / values if is_divisor else values
    is_number = values.isfinite() & (values != 0)
    return {
        ScaleFaultKind.NOT_FINITE: ~values.isfinite(),
        ScaleFaultKind.ZERO: values == 0,
        ScaleFaultKind.NEGATIVE: is_number & (values < 0),
        ScaleFaultKind.TOO_SMALL: is_number & (multipliers.abs() < _SMALLEST_NORMAL),
    }


def _faults(
    name: str,
    role: ScaleRole,
    faulty: Mapping[ScaleFaultKind, Tensor],
    *,
    weight: str | None = None,
) -> Iterator[ScaleFault]:
    for kind, elements in faulty.items():
        if num_faulty := int(elements.count_nonzero()):
            yield ScaleFault(
                name=name,
                role=role,
                kind=kind,
                num_faulty=num_faulty,
                num_scales=elements.numel(),
                weight=weight,
            )


def _kind_in_layer(module: str) -> str:
    """The linear in one layer, of whatever expert."""
    layer = layer_of(module)
    return f"{layer}{module_pattern(module.removeprefix(layer))}"


def _cache_format(quantization: Quantization | None) -> str | None:
    """The format of keys and values that a config declares with static scales.

    **Source**: ``kv_cache_scheme`` of compressed-tensors, ``kv_cache_quant_algo`` of modelopt
    """
    settings: Mapping[str, Any] = {} if quantization is None else quantization.settings
    scheme = settings.get("kv_cache_scheme")
    if isinstance(scheme, dict):
        return None if scheme.get("dynamic") else f"{scheme.get('type')}{scheme.get('num_bits')}"
    algorithm = settings.get("kv_cache_quant_algo")
    return algorithm.lower() if isinstance(algorithm, str) else None
