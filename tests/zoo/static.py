"""``--static`` on a tiny model of every architecture: silent but for what is documented.

``make zoo-static`` prints a line for each model that is not silent, and fails where there is one;
and a line for each whose data flow cannot be traced, which the report says itself. Each is saved,
and told of from its small tensors and then from all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import transformers

import precheck
from precheck.records.finding import Severity
from tests.zoo.build import Kind, NotBuiltError, build, kinds

if TYPE_CHECKING:
    from precheck.records.finding import Finding

_DOCUMENTED = "PC116"
"""What is documented for a family is said of every model of it."""
_UNTRACEABLE = ("the data flow of ", "a longer text takes other operations")
"""How the reason begins where a forward cannot be traced: no fault of a rule."""


@dataclass(kw_only=True)
class Row:
    """What became of one architecture."""

    kind: Kind
    built: str | None = None
    """Why no small model was made."""
    faults: list[str] = field(default_factory=list)
    """Findings that a healthy model must not have, rules that failed, and errors."""
    untraced: str | None = None
    """Why its data flow is not known."""


def survey(kind: Kind) -> Row:
    """Everything about one architecture."""
    row = Row(kind=kind)
    try:
        model = build(kind)
    except NotBuiltError as error:
        row.built = str(error)
        return row
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for full in (False, True):
            found = _look(folder, row, full=full)
            row.faults += [f"full: {each}" if full else each for each in found]
    return row


def _look(folder: str, row: Row, *, full: bool) -> list[str]:
    try:
        report = precheck.scan(folder, static=True, full=full)
    except Exception as error:  # noqa: BLE001  what this looks for
        return [f"{type(error).__name__}: {error}"]
    found = [f"{each.code}: {each.message}" for each in report.findings if is_alarm(each)]
    failure = report.coverage.not_followed
    if failure is not None and failure.startswith(_UNTRACEABLE):
        row.untraced = failure
    elif failure is not None:
        found.append(f"not followed: {failure}")
    return found


def is_alarm(finding: Finding) -> bool:
    """Whether a healthy model must not have it."""
    return finding.severity is not Severity.NOTE and finding.code != _DOCUMENTED


def line(row: Row) -> str:
    """What is wrong with one architecture, or not known of it."""
    told = row.faults or [f"untraced: {row.untraced}"]
    return f"{row.kind.class_name}: {'; '.join(fault[:240] for fault in told)}"


def main() -> None:
    """Survey all, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; without any, all")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    began = time.monotonic()
    num_scanned = num_loud = 0
    for kind in kinds():
        if arguments.names and kind.model_type not in arguments.names:
            continue
        row = survey(kind)
        num_scanned += row.built is None
        num_loud += bool(row.faults)
        if row.faults or row.untraced:
            sys.stdout.write(f"{line(row)}\n")
            sys.stdout.flush()
    seconds = time.monotonic() - began
    sys.stdout.write(f"{num_scanned} models, {num_loud} not silent, {seconds:.0f} seconds\n")
    sys.exit(num_loud > 0)


if __name__ == "__main__":
    main()
