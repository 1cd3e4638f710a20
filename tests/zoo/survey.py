"""Scans a tiny model of every architecture, healthy and with a planted overflow, and tells which.

``make zoo`` writes the table into ``docs/coverage.md``. Each architecture has a process of its own,
so that one that hangs or dies is one row.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import precheck
from precheck.errors import PrecheckError
from precheck.records.finding import Severity, Verdict
from precheck.records.precision import Dtype
from tests.tiny_models import tiny_tokenizer
from tests.zoo.build import TASKS, Kind, NotBuiltError, build, forward, kinds
from tests.zoo.plant import plant

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from precheck.records.report import Report

SECONDS = 600
"""For one architecture: built, scanned, planted, scanned again."""
MEMORY_BYTES = 12 << 30
_UNSAFE = {Verdict.OVERFLOW, Verdict.DEGRADED, Verdict.FAILED}
_ABOUT_THE_MODEL = ("PC1", "PC2", "PC3")
"""Findings that a healthy model must not have; others are about devices, files and the scan."""


@dataclass(kw_only=True)
class Row:
    """What became of one architecture; None where it was not come to."""

    kind: Kind
    built: str | None = None
    """Why no small model was made."""
    refused: str | None = None
    """Why precheck does not scan it: an error of its own, with a reason."""
    crashed: str | None = None
    """An error that precheck should not have made."""
    num_layers_right: bool | None = None
    alarms: tuple[str, ...] = ()
    """Findings on the healthy model that plain transformers does not confirm."""
    confirmed: tuple[str, ...] = ()
    """Those that it does: random weights are not always harmless to round."""
    planted: str | None = None
    named: str | None = None
    """The culprit that was named in the planted one."""
    unplanted: str | None = None
    """Why nothing was planted."""

    @property
    def is_scanned(self) -> bool:
        return self.built is None and self.refused is None and self.crashed is None

    @property
    def is_silent(self) -> bool:
        return self.is_scanned and not self.alarms

    @property
    def is_named(self) -> bool:
        return self.planted is not None and self.named == self.planted


def survey(kind: Kind) -> Row:
    """Everything about one architecture, in this process."""
    row = Row(kind=kind)
    try:
        model = build(kind)
    except NotBuiltError as error:
        row.built = str(error)
        return row
    try:
        with tempfile.TemporaryDirectory() as folder:
            _scan_both(model, Path(folder), row)
    except PrecheckError as error:
        row.refused = error.message
    except Exception:  # noqa: BLE001  what this looks for
        row.crashed = " / ".join(traceback.format_exc().strip().splitlines()[-3:])[:400]
    return row


def _scan_both(model: PreTrainedModel, folder: Path, row: Row) -> None:
    report = _scanned(model, folder / "healthy")
    row.num_layers_right = report.model.num_decoder_layers in _num_layers(model)
    alarms = _alarms(report)
    if alarms and is_confirmed(model, folder / "healthy", alarms=alarms):
        row.confirmed = tuple(alarms)
    else:
        row.alarms = tuple(alarms)
    if any(run.verdict in _UNSAFE for run in report.runs if run.dtype is Dtype.FLOAT16):
        row.unplanted = "float16 breaks without a plant"
        return
    try:
        row.planted = plant(model)
    except NotBuiltError as error:
        row.unplanted = str(error)
        return
    row.named = _culprit(_scanned(model, folder / "planted"))


def _scanned(model: PreTrainedModel, folder: Path) -> Report:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return precheck.scan(folder, device="cpu")


def _num_layers(model: PreTrainedModel) -> set[int]:
    """What a config calls its number of layers; some count blocks, others what is in them."""
    text = model.config.get_text_config()
    names = ("decoder_layers", "num_decoder_layers", "num_hidden_layers", "n_layer", "num_layers")
    return {
        int(found)
        for config in (text, model.config)
        for name in (*names, "num_layers_per_stack")
        if isinstance(found := getattr(config, name, None), int)
    }


def _alarms(report: Report) -> list[str]:
    found = [
        f"{finding.code} {finding.message}"
        for finding in report.findings
        if finding.severity is not Severity.NOTE and finding.code.startswith(_ABOUT_THE_MODEL)
    ]
    return found or [
        f"{run.name}: {run.verdict} {run.reason}" for run in report.runs if run.verdict in _UNSAFE
    ]


def is_confirmed(model: PreTrainedModel, folder: Path, *, alarms: list[str]) -> bool:
    """Whether plain forwards, without precheck, differ or fail as said."""
    configurations = [
        {"dtype": getattr(torch, dtype), "attn_implementation": attn}
        for dtype in Dtype
        for attn in dict.fromkeys((model.config._attn_implementation, "eager"))  # noqa: SLF001
    ]
    exact = {
        "dtype": torch.float32,
        "attn_implementation": configurations[0]["attn_implementation"],
    }
    for padding in (0, _LONG // 2):
        try:
            expected = _plain_logits(model, folder, exact, padding=padding)
            for configuration in configurations:
                found = _plain_logits(model, folder, configuration, padding=padding)
                # a comparison with NaN is false
                allowed = (
                    _DIFFERS if configuration["dtype"] is not torch.float32 else _DIFFERS_IN_FLOAT32
                )
                if not float((found - expected).norm() / expected.norm()) <= allowed:
                    return True
        except Exception as error:  # noqa: BLE001  what plain forwards cannot do either
            lines = str(error).strip().splitlines() or [""]
            if any(lines[0][:40] in alarm for alarm in alarms):
                return True
    return False


def _plain_logits(
    model: PreTrainedModel, folder: Path, configuration: dict[str, Any], *, padding: int
) -> torch.Tensor:
    """Of real tokens, by transformers alone."""
    loaded: Any = type(model).from_pretrained(folder, **configuration).eval()
    logits = forward(loaded, length=_LONG, padding=padding).logits.double()
    is_encoder_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    first = 0 if is_encoder_decoder else padding
    return torch.cat([logits[0].flatten(), logits[1, first:].flatten()])


_LONG = 100
"""Tokens: beyond the windows of the small models."""
_DIFFERS = 0.03
"""Relative distance of the logits; a healthy model's is below 0.01 in bfloat16."""
_DIFFERS_IN_FLOAT32 = 1e-3
"""Two attention implementations agree to about one in a million."""


def _culprit(report: Report) -> str | None:
    """The module that every float16 run names first; what they say where they do not agree."""
    named = {
        None if run.first_overflow is None else run.first_overflow.module
        for run in report.runs
        if run.dtype is Dtype.FLOAT16 and run.failure is None
    }
    if not named:
        return f"nothing: {next((run.reason for run in report.runs if run.failure), None)}"
    return named.pop() if len(named) == 1 else ", ".join(sorted(map(str, named)))


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
        number = os.WTERMSIG(status)
        late = f"not done after {SECONDS} seconds"
        return Row(
            kind=kind,
            crashed=late if number == signal.SIGALRM else f"the process ended with signal {number}",
        )
    return _row(json.loads(text))


def _row(fields: dict[str, Any]) -> Row:
    return Row(**{**fields, "kind": Kind(*fields["kind"])})


def _rows_in(file: Path) -> list[Row]:
    return [_row(load) for load in json.loads(file.read_text())] if file.is_file() else []


def become_quiet() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.alarm(SECONDS)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


def main() -> None:
    """Survey all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; without any, all")
    parser.add_argument("-o", "--output", type=Path, help="write the page here")
    parser.add_argument(
        "--json", type=Path, help="write the rows here; those not surveyed now stay as they are"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    every, names = kinds(), arguments.names
    chosen = [each for each in every if not names or each.model_type in names]
    known = _rows_in(arguments.json) if names and arguments.json else []
    rows = [row for row in known if row.kind not in chosen]
    began = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for row in pool.map(in_a_process, chosen):
            rows.append(row)
            if row.built is None:
                sys.stdout.write(f"{_line(row)}\n")
                sys.stdout.flush()
    rows.sort(key=lambda row: every.index(row.kind))
    sys.stdout.write(f"\n{summary(rows)}\n{time.monotonic() - began:.0f} seconds\n")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(each) for each in rows], indent=1))
    if arguments.output:
        arguments.output.write_text(page(rows), encoding="utf-8")


def _line(row: Row) -> str:
    name = f"{row.kind.model_type:28} {row.kind.class_name:44}"
    if row.crashed:
        return f"{name} CRASHED {row.crashed}"
    if row.refused:
        return f"{name} refused: {row.refused}"
    silent = "silent" if row.is_silent else f"ALARM {row.alarms[0][:120]}"
    if row.confirmed:
        silent = f"confirmed {row.confirmed[0][:60]}"
    layers = "" if row.num_layers_right else " LAYERS"
    if row.unplanted:
        return f"{name} {silent}{layers}; not planted: {row.unplanted[:60]}"
    named = "named" if row.is_named else f"NOT NAMED {row.planted}: {row.named}"
    return f"{name} {silent}{layers}; {named}"


_HEAD = (
    "| auto class | built small | scanned | layers right | healthy: no false alarm | planted |"
    " culprit named |"
)
_PAGE = """# Coverage

Every architecture that transformers {version} can build small from its own config classes,
scanned as a saved checkpoint with random weights: once healthy, with a left-padded batch among
the probes, and once with an overflow planted in its middle decoder layer. `make zoo` writes this
page.

{summary}

*Silent*: no finding about range, precision or attention, and every run is usable. With some
random weights, rounding matters or another attention gives another result: such a finding is not
a false alarm if plain transformers forwards differ as much.
*Named*: every float16 run names the module with the planted weights first. Where float16 already
breaks without a plant, as plain forwards confirm, nothing is planted.

## Architectures

{table}

## Not built small

Nothing is known about these: their configs do not shrink by the generic rules of
`tests/zoo/build.py`, or they need more than token ids.

{left}
"""


def summary(rows: list[Row]) -> str:
    """A table, a line for each auto class."""
    lines = [_HEAD, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for task in (*TASKS, "all"):
        of_task = [row for row in rows if task in {"all", row.kind.task}]
        built = [row for row in of_task if row.built is None]
        counts = (
            f"{len(built)} of {len(of_task)}",
            sum(row.is_scanned for row in built),
            sum(bool(row.num_layers_right) for row in built),
            sum(row.is_silent for row in built),
            sum(row.planted is not None for row in built),
            sum(row.is_named for row in built),
        )
        lines.append(f"| {task} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """``docs/coverage.md``."""
    built = [row for row in rows if row.built is None]
    table = ["| model type | class | healthy | planted overflow |", "| --- | --- | --- | --- |"]
    left = ["| model type | class | reason |", "| --- | --- | --- |"]
    left += [f"{_name(row)} {_plain(row.built)} |" for row in rows if row.built is not None]
    return _PAGE.format(
        version=transformers.__version__,
        summary=summary(rows),
        table="\n".join([*table, *map(_cells, built)]),
        left="\n".join(left),
    )


def _name(row: Row) -> str:
    return f"| `{row.kind.model_type}` | `{row.kind.class_name}` |"


def _cells(row: Row) -> str:
    name = _name(row)
    if row.crashed or row.refused:
        what = "failed" if row.crashed else "refused"
        return f"{name} {what}: {_plain(row.crashed or row.refused or '')} | |"
    healthy = "silent" if row.is_silent else f"false alarm: {_plain(row.alarms[0])}"
    if row.confirmed:
        healthy = f"{_plain(row.confirmed[0][:100])} (confirmed by plain forwards)"
    if not row.num_layers_right:
        healthy += ", another number of layers"
    if row.unplanted:
        return f"{name} {healthy} | not planted: {_plain(row.unplanted)} |"
    named = "named" if row.is_named else f"planted in `{row.planted}`, named `{row.named}`"
    return f"{name} {healthy} | {named} |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("`", "'")[:200]


if __name__ == "__main__":
    main()
