"""The file of saved log-probabilities: gzip over safetensors, so that nothing in it is code.

One tensor is JSON, which says what the others are. Every number is checked before it is used: the
file may be cut, damaged, or made to hurt.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from precheck.errors import ReportError, UsageError
from precheck.records.outcomes.saved_logits import LOGITS_SCHEMA, SavedContents, digest_of
from precheck.served.readings import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from precheck.records.configuration import Configuration

MOST_BYTES = 1 << 30
"""Of a file's content: a hundred times what the built-in prompts take in ten configurations."""
MOST_TOP = 1024
_ABOUT = "about"
_DTYPES: dict[str, np.dtype[Any]] = {
    "ids": np.dtype(np.int32),
    "log_probabilities": np.dtype(np.float64),
    "at_token": np.dtype(np.float64),
    "lowest": np.dtype(np.float64),
    "rank": np.dtype(np.int32),
}
"""Arrays ``(runs, positions)``; the first two ``(runs, positions, kept)``, the likeliest first."""
_HINT = "write one: precheck scan MODEL --save-logits FILE"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedLogits:
    """What every run says at the positions of every probe; see :class:`Reading`."""

    contents: SavedContents
    readings: Mapping[Configuration, Mapping[str, Reading]]
    """By the name of the probe; ``at_told`` is ``(positions, 0)``."""


def as_bytes(saved: SavedLogits) -> bytes:
    """The content of a file.

    Raises:
        UsageError: there is too much of it.
    """
    contents = saved.contents
    of_runs = [saved.readings[run.configuration] for run in contents.finished]

    def stacked(name: str) -> NDArray[Any]:
        rows = [
            np.concatenate([getattr(of_run[probe.name], name) for probe in contents.probes])
            for of_run in of_runs
        ]
        return np.stack(rows)

    names = {"ids": "top_ids", "log_probabilities": "top"}
    arrays = {
        name: np.ascontiguousarray(stacked(names.get(name, name)), dtype=dtype)
        for name, dtype in _DTYPES.items()
    }
    arrays[_ABOUT] = np.frombuffer(msgspec.json.encode(contents), dtype=np.uint8)
    if sum(array.nbytes for array in arrays.values()) > MOST_BYTES // 2:
        raise UsageError(
            f"log-probabilities of {contents.num_positions:,} positions in {len(of_runs)} runs are"
            " too many for one file",
            hint="fewer prompts, or fewer configurations",
        )
    return gzip.compress(safetensors.numpy.save(arrays), compresslevel=6, mtime=0)


def read_logits(path: Path) -> SavedLogits:
    """The log-probabilities that ``scan --save-logits`` wrote.

    Raises:
        ReportError: the file is not there, cut, damaged, of another kind, or contradicts itself.
    """
    arrays = _arrays(path)
    try:
        contents = msgspec.json.decode(arrays.pop(_ABOUT).tobytes(), type=SavedContents)
    except (KeyError, msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise _unreadable(path, error) from error
    problem = _problem(contents, arrays)
    if problem is not None:
        raise _unreadable(path, problem)
    return SavedLogits(contents=contents, readings=_readings(contents, arrays))


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with gzip.open(path) as file:
            content = file.read(MOST_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise ReportError(
            f"cannot read saved log-probabilities: {str(path)!r}: {error.strerror}", hint=_HINT
        ) from error
    if len(content) > MOST_BYTES:
        raise _unreadable(path, f"more than {MOST_BYTES:,} bytes")
    try:
        return safetensors.numpy.load(content)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, why: object) -> ReportError:
    return ReportError(f"no saved log-probabilities: {str(path)!r}: {why}", hint=_HINT)


def _problem(contents: SavedContents, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    """What contradicts itself; None where nothing does."""
    if contents.schema != LOGITS_SCHEMA:
        return f"schema is {contents.schema!r} (expected {LOGITS_SCHEMA!r})"
    if {name: array.dtype for name, array in arrays.items()} != _DTYPES:
        return f"arrays are {', '.join(sorted(arrays))} (expected {', '.join(_DTYPES)})"
    size = (len(contents.finished), contents.num_positions)
    top = arrays["ids"].shape[-1] if arrays["ids"].ndim > len(size) else 0
    for name in _DTYPES:
        expected = (*size, top) if name in {"ids", "log_probabilities"} else size
        if arrays[name].shape != expected:
            return f"{name} is {arrays[name].shape} (expected {expected})"
    if 0 in size or not 0 < top <= MOST_TOP:
        return f"{size[0]} runs, {size[1]} positions, {top} tokens at each"
    return _problem_of_probes(contents) or _problem_of_values(contents, arrays)


def _problem_of_probes(contents: SavedContents) -> str | None:
    if digest_of(contents.probes) != contents.probes_digest:
        return "the probes are not those of its digest"
    names = [probe.name for probe in contents.probes]
    if len(set(names)) < len(names) or not all(probe.ids for probe in contents.probes):
        return "a probe is empty, or there twice"
    ids = [token for probe in contents.probes for token in (*probe.ids, *probe.generated)]
    if not 0 <= min(ids) <= max(ids) < contents.vocab_size:
        return "a token id is outside the vocabulary"
    known = [run.configuration for run in contents.finished]
    if len(set(known)) < len(known) or {one.reference for one in known} - set(known):
        return "a run is there twice, or without its float32 run"
    return None


def _problem_of_values(contents: SavedContents, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    ids = arrays["ids"]
    if ids.min() < 0 or ids.max() >= contents.vocab_size or arrays["rank"].min() < 0:
        return "a token id or a rank is outside the vocabulary"
    numbers = (array for array in arrays.values() if array.dtype == np.float64)
    if any(bool((array > 1e-6).any()) for array in numbers):  # noqa: PLR2004  rounding of a sum
        return "a probability is above 1"
    return None


def _readings(
    contents: SavedContents, arrays: Mapping[str, NDArray[Any]]
) -> dict[Configuration, dict[str, Reading]]:
    readings: dict[Configuration, dict[str, Reading]] = {}
    for index, run in enumerate(contents.finished):
        start = 0
        of_run = readings.setdefault(run.configuration, {})
        for probe in contents.probes:
            rows = slice(start, start + probe.num_positions)
            of_run[probe.name] = Reading(
                at_told=np.empty((probe.num_positions, 0)),
                at_token=arrays["at_token"][index, rows],
                rank=arrays["rank"][index, rows].astype(np.int64),
                lowest=arrays["lowest"][index, rows],
                top=arrays["log_probabilities"][index, rows],
                top_ids=arrays["ids"][index, rows].astype(np.int64),
            )
            start = rows.stop
    return readings
