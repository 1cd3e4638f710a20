"""What a certificate costs: processor seconds of ``--prove`` over those of the scan that it is in.

``make bench ARGS="prove-time MODEL"``

Both are taken in one scan, so that whatever else the machine does slows both alike: the time of
tracing and bounding is taken apart, and the rest of the scan is what it would be without it.
"""

from __future__ import annotations

import argparse
import time
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from precheck.measure.bounds import certificates

if TYPE_CHECKING:
    from collections.abc import Callable


def main() -> None:
    """Prints processor seconds of both parts, their ratio, and what is proved in each run."""
    from precheck import pipeline, render  # noqa: PLC0415  torch is imported

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a checkpoint")
    parser.add_argument("--dtypes", help="as in a scan")
    parser.add_argument("--attn", help="as in a scan")
    parser.add_argument("-o", "--output", type=Path, help="write the report there, as JSON")
    options = parser.parse_args()
    spent = {"traced": 0.0, "bounded": 0.0}
    own = certificates.Certificates
    own.__init__ = _timed(own.__init__, spent, "traced")  # type: ignore[method-assign]
    own.enter = _timed(own.enter, spent, "bounded")  # type: ignore[method-assign]
    own.finished = _timed(own.finished, spent, "bounded")  # type: ignore[method-assign]
    began = time.process_time()
    report = pipeline.scan(
        options.model,
        dtypes=options.dtypes,
        attn_implementations=options.attn,
        prove=True,
    )
    scan = time.process_time() - began - sum(spent.values())
    if options.output is not None:
        options.output.write_text(render.RENDERERS["json"].render(report), encoding="utf-8")
    for run in report.runs:
        if run.proof is not None:
            proved = f"{run.proof.num_proved} of {run.proof.num_operations} operations proved"
            print(f"{run.dtype} + {run.attn_implementation}: {proved}")
    print(
        f"scan {scan:.1f} s, " + ", ".join(f"{name} {part:.1f} s" for name, part in spent.items())
    )
    print(f"certificate / scan: {sum(spent.values()) / scan:.3f}")


def _timed(function: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    """The same function; its processor time is added to ``spent``."""

    @wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[name] += time.process_time() - began

    return timed


if __name__ == "__main__":
    main()
