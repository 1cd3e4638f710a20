"""How tight bounds are: tables for ``docs/every-prompt.md``, from reports or from scans.

``python -m tests.measure.bounds.tightness [REPORT.json | MODEL | demo:NAME ...] [--zoo NAMES]``

Each is taken in float16 with eager attention. A ratio is a bound over the largest value that a
probe of the scan found for the same mechanism in the same layer.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import precheck
from precheck.records.outcomes.every_prompt import ProofStatus
from precheck.records.precision import Dtype
from precheck.saved import read_report
from tests.zoo.build import build, kinds

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precheck.records.report import Report
    from precheck.records.traces import Headroom

ZOO = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma2ForCausalLM",
    "Olmo2ForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
    "GPTNeoXForCausalLM",
    "OPTForCausalLM",
    "BertLMHeadModel",
    "BloomForCausalLM",
    "T5ForConditionalGeneration",
)
"""Twelve architectures: rotations, biases, norms on queries and keys, caps, gates and none."""
_DTYPE = Dtype.FLOAT16


def table(rows: Iterable[Headroom]) -> Iterator[str]:
    """A line for each mechanism: ratios, and how many layers are proved, refuted and open."""
    by_mechanism: defaultdict[str, list[Headroom]] = defaultdict(list)
    for row in rows:
        if _DTYPE in row.status:
            by_mechanism[row.mechanism].append(row)
    for mechanism, own in sorted(by_mechanism.items()):
        ratios = [
            row.bound_abs_max[_DTYPE] / row.abs_max
            for row in own
            if row.abs_max and _DTYPE in row.bound_abs_max
        ]
        counts = Counter(row.status[_DTYPE] for row in own)
        said = " | ".join(str(counts[status]) for status in ProofStatus)
        worst = f"{max(ratios):.3g}" if ratios else "-"
        median = f"{statistics.median(ratios):.3g}" if ratios else "-"
        unbounded = sum(_DTYPE not in row.bound_abs_max for row in own)
        yield f"| {mechanism.replace('_', ' ')} | {median} | {worst} | {said} | {unbounded} |"


def layers(rows: Iterable[Headroom]) -> Iterator[str]:
    """Which layers of a mechanism are not proved, and between which numbers."""
    for row in rows:
        if row.status.get(_DTYPE, ProofStatus.PROVED) is not ProofStatus.PROVED:
            bound = row.bound_abs_max.get(_DTYPE, math.inf)
            place = row.module if row.layer is None else f"layer {row.layer}"
            numbers = f"found {row.abs_max:,.0f}, bound {bound:,.0f}"
            yield f"- {row.mechanism.replace('_', ' ')}, {place}: {row.status[_DTYPE]}, {numbers}"


def scanned(name: str) -> Report:
    """The report of a saved file, or of a scan."""
    if name.endswith(".json"):
        return read_report(name)
    return precheck.scan(
        name, dtypes=_DTYPE, attn_implementations="eager", prove=True, resident=True
    )


def of_zoo(names: Iterable[str]) -> Iterator[tuple[str, Report]]:
    """Scans of small models with random weights."""
    wanted = set(names)
    for kind in kinds():
        if kind.class_name in wanted:
            model = build(kind)
            report = precheck.scan(
                model, dtypes=_DTYPE, attn_implementations="eager", quick=True, prove=True
            )
            yield kind.class_name, report


def main() -> None:
    """Prints Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--zoo", nargs="?", const=",".join(ZOO), default="")
    parser.add_argument("--layers", action="store_true", help="list what is not proved")
    options = parser.parse_args()
    given = ((name, scanned(name)) for name in options.models)
    for reports in (given, of_zoo(filter(None, options.zoo.split(",")))):
        for name, report in reports:
            sys.stdout.write("\n".join(_said(name, report, with_layers=options.layers)) + "\n")
            sys.stdout.flush()


def _said(name: str, report: Report, *, with_layers: bool) -> Iterator[str]:
    proofs = [run.proof for run in report.runs if run.proof is not None]
    failures = [proof.failure for proof in proofs if proof.failure]
    yield f"\n**{name}**" + (f": {failures[0]}" if failures else "") + "\n"
    yield "| mechanism | median | worst | proved | refuted | open | unbounded |"
    yield "|---|---|---|---|---|---|---|"
    yield from table(report.headroom)
    if with_layers:
        yield ""
        yield from layers(report.headroom)


if __name__ == "__main__":
    main()
