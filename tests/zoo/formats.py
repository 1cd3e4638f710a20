"""Number formats in a tiny model of every architecture: what is stored, and what it does.

``make zoo-formats`` prints a line for each. In float32, without a scan: a cache that stores nothing
in the format gives the bits of no cache; each part that is stored changes the logits; and one
forward gives what decoding token by token gives, with the format on. Then a scan runs one format of
the cache and one of the weights, and writes two tokens.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import sys
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from precheck.errors import PrecheckError
from precheck.measure.formats.parts import Parts, Storing
from precheck.measure.models.skeleton import Skeleton
from precheck.measure.request import Request
from precheck.measure.subject.subject import LiveSubject
from precheck.measure.watch.parameters import Parameters
from precheck.pipeline import judged
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype
from tests.tiny_models import VOCAB_SIZE
from tests.zoo.build import Kind, NotBuiltError, build, kinds
from tests.zoo.survey import become_quiet

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from precheck.records.report import Run

CACHE, WEIGHTS = "fp8_e4m3", "int8"
LENGTH = 80
"""Tokens: beyond the windows of the small models."""
NUM_DECODED = 3
_AGREES = 1e-3
"""Relative distance of logits between one forward and decoding: a few numbers of a layer are
halfway between two of the format, and go either way."""


@dataclass(kw_only=True)
class Row:
    """What became of one architecture."""

    kind: Kind
    built: str | None = None
    """Why no small model was made."""
    cache: str | None = None
    """Why it has no run with a cache format, as the scan says it."""
    parts: tuple[str, ...] = ()
    """What the cache stores."""
    without_effect: tuple[str, ...] = ()
    """Parts of which the logits do not depend."""
    distance_unstored: float = 0.0
    """Of the logits with a cache that stores nothing in the format from those without a cache."""
    is_repeatable: bool = True
    """The same cache gives the same logits a second time: a unit can be examined."""
    distance_decoded: float | None = None
    """Of one forward's logits from those of decoding token by token."""
    not_decoded: str | None = None
    failures: dict[str, str] = field(default_factory=dict)
    """By run, of the scan."""
    crashed: str | None = None

    @property
    def faults(self) -> list[str]:
        """What is wrong."""
        found = [] if self.crashed is None else [f"CRASHED {self.crashed}"]
        if self.without_effect:
            found.append(f"without effect: {', '.join(self.without_effect)}")
        if self.distance_unstored > _AGREES / 100:
            found.append(f"a cache alone changes logits by {self.distance_unstored:.1e}")
        if not self.is_repeatable:
            found.append("a forward changes what the next one gives")
        if self.distance_decoded is not None and not self.distance_decoded <= _AGREES:
            found.append(f"decoding differs by {self.distance_decoded:.1e}")
        return found


def survey(kind: Kind) -> Row:
    """Everything about one architecture, in this process."""
    row = Row(kind=kind)
    try:
        model = build(kind)
    except NotBuiltError as error:
        row.built = str(error)
        return row
    try:
        _store_in_cache(model, row)
        _scan(model, row)
    except Exception:  # noqa: BLE001  what this looks for
        row.crashed = " / ".join(traceback.format_exc().strip().splitlines()[-3:])[:400]
    return row


def _store_in_cache(model: PreTrainedModel, row: Row) -> None:
    plain = skeleton_of(model)
    inputs = inputs_of(plain)
    expected = _logits(plain, inputs)
    try:
        whole = plain.with_formats(_CONFIGURATION, cache_scales={})
        parts = Parts()
        stored = _logits(replace(whole, storing=Storing(parts=parts)), inputs)
    except PrecheckError as error:
        row.cache = error.message
        return
    except Exception as error:  # noqa: BLE001  a scan says it as the reason of the run
        row.cache = _reason(error)
        return
    row.parts = tuple(parts.stats)
    nothing = _logits(replace(whole, storing=Storing(lambda _part: False)), inputs)
    row.distance_unstored = _distance(nothing, expected)
    row.without_effect = tuple(
        part
        for part in row.parts
        if torch.equal(_logits(replace(whole, storing=Storing(part.__eq__)), inputs), nothing)
    )
    cache = whole.new_cache(is_kept=False)
    first, second = (_logits(whole, inputs, cache) for _ in range(2))
    row.is_repeatable = torch.equal(first, second)
    try:
        unstored = replace(whole, storing=Storing(lambda _part: False))
        if _distance(_decoded(unstored, inputs), nothing) > _AGREES / 100:
            row.not_decoded = "decoding gives other logits without a format too"
            return
        row.distance_decoded = _distance(_decoded(whole, inputs), stored)
    except Exception as error:  # noqa: BLE001  some forwards do not decode by themselves
        row.not_decoded = _reason(error)


_CONFIGURATION = Configuration(dtype=Dtype.FLOAT32, attn_implementation="", kv_cache_dtype=CACHE)


def skeleton_of(model: PreTrainedModel) -> Skeleton:
    """The model as a run in float32."""
    return Skeleton(
        model=model,
        configuration=replace(_CONFIGURATION, kv_cache_dtype=None),
        requested_attn_implementation="",
        parameters=Parameters.of(model),
    )


def inputs_of(skeleton: Skeleton) -> dict[str, Any]:
    """Two rows of token ids, for an encoder and a decoder where there are both."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCAB_SIZE - 3, (2, LENGTH), generator=random)
    inputs = {"input_ids": ids}
    if "decoder_input_ids" in skeleton.accepts:
        inputs["decoder_input_ids"] = ids.flip(1)
    return inputs


@torch.no_grad()
def _logits(skeleton: Skeleton, inputs: dict[str, Any], cache: Any = None) -> torch.Tensor:
    model: Any = skeleton.model
    cache = skeleton.new_cache(is_kept=False) if cache is None else cache
    if cache is None:
        given = {"use_cache": False} if "use_cache" in skeleton.accepts else {}
    else:
        given = {"use_cache": True, "past_key_values": cache}
    found: torch.Tensor = model(**inputs, **given).logits
    return found


@torch.no_grad()
def _decoded(skeleton: Skeleton, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits of a prefill and then of tokens one by one, which read what the cache kept."""
    model: Any = skeleton.model
    cache = skeleton.new_cache(is_kept=True)
    steps = inputs.get("decoder_input_ids", inputs["input_ids"])
    bounds = [0, LENGTH - NUM_DECODED, *range(LENGTH - NUM_DECODED + 1, LENGTH + 1)]
    is_pair = "decoder_input_ids" in inputs
    given = {"input_ids": inputs["input_ids"]} if is_pair else {}
    name = "decoder_input_ids" if is_pair else "input_ids"
    found = []
    for start, end in itertools.pairwise(bounds):
        output = model(
            **given, **{name: steps[:, start:end]}, use_cache=True, past_key_values=cache
        )
        found.append(output.logits)
        if is_pair:
            given = {"encoder_outputs": (output.encoder_last_hidden_state,)}
    return torch.cat(found, dim=1)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:100]}"


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def _scan(model: PreTrainedModel, row: Row) -> None:
    request = Request(
        dtypes=(Dtype.BFLOAT16,),
        attn_implementations=(model.config._attn_implementation,),  # noqa: SLF001  what it uses
        quick=True,
        device="cpu",
        kv_cache_dtypes=(CACHE,),
        quantizations=(WEIGHTS,),
        num_generated=2,
    )
    try:
        report = judged(LiveSubject(model, None), request, observe=lambda _event: None)
    except PrecheckError as error:
        row.failures["scan"] = error.message
        return
    troubles = {Configuration.of(run): _troubles(run) for run in report.runs}
    for configuration, found in troubles.items():
        if found and found != troubles.get(configuration.without_formats):
            row.failures[" + ".join(configuration.formats)] = found


def _troubles(run: Run) -> str:
    """Why a run failed, or could not write; those of the run without the format are no news."""
    if run.failure is not None:
        return run.failure
    if run.format_loss is not None and run.format_loss.kl_divergence == 0:
        return "loses nothing"
    return "; ".join(dict.fromkeys(one.error for one in run.generations if one.error is not None))


def in_a_process(kind: Kind) -> Row:
    """The same in a process of its own, bounded in time and memory."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        become_quiet()
        with os.fdopen(theirs, "w", encoding="utf-8") as out:
            json.dump(asdict(survey(kind)), out)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, encoding="utf-8") as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    if not text:
        return Row(kind=kind, crashed=f"ended with {signal.Signals(os.WTERMSIG(status)).name}")
    fields = json.loads(text)
    return Row(**{**fields, "kind": Kind(*fields["kind"])})


def main() -> None:
    """Survey all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; without any, all")
    parser.add_argument("-o", "--output", type=Path, help="write the lines here too")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    chosen = [each for each in kinds() if not arguments.names or each.model_type in arguments.names]
    began = time.monotonic()
    lines: list[str] = []
    with ThreadPoolExecutor(arguments.processes) as pool:
        for row in pool.map(in_a_process, chosen):
            if row.built is not None:
                continue
            lines.append(line(row))
            sys.stdout.write(f"{lines[-1]}\n")
            sys.stdout.flush()
            if arguments.output:
                arguments.output.write_text("\n".join([*_HEAD, *lines, ""]), encoding="utf-8")
    sys.stdout.write(f"{len(lines)} models, {time.monotonic() - began:.0f} seconds\n")


_HEAD = (
    f"| model type | class | cache {CACHE} | parts | decoding | failures | faults |",
    "| --- | --- | --- | --- | --- | --- | --- |",
)


def line(row: Row) -> str:
    """A row of the table."""
    decoded = row.not_decoded or (
        "" if row.distance_decoded is None else f"{row.distance_decoded:.1e}"
    )
    cells = (
        row.kind.model_type,
        row.kind.class_name,
        row.cache or "runs",
        str(len(row.parts)),
        decoded,
        "; ".join(f"{run}: {reason}" for run, reason in row.failures.items()),
        "; ".join(row.faults),
    )
    return f"| {' | '.join(cell.replace('|', '/')[:240] for cell in cells)} |"


if __name__ == "__main__":
    main()
