"""A scan that says when it had imported, when its first forward began, and what it ran.

``python benchmarks/timed_scan.py MODEL BATCHES [ATTENTION...]``: with the prompts of
``BATCHES.jsonl`` if there is such a file, else with the default probes. Writes the batches that ran
to ``BATCHES`` and prints JSON.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil

BEGAN = psutil.Process().create_time()


def main(model: str, batches: str, *attentions: str) -> None:
    """Prints seconds since the process began, and the arithmetic of each run."""
    from precheck.commands.importing import import_torch  # noqa: PLC0415  its time is told

    import_torch()
    found: dict[str, Any] = {"imports": time.time() - BEGAN}

    import torch  # noqa: PLC0415

    from precheck import pipeline  # noqa: PLC0415
    from precheck.measure import runs  # noqa: PLC0415
    from precheck.records.progress import Announcement, Step  # noqa: PLC0415

    inputs: list[dict[str, torch.Tensor]] = []
    run_batches = runs.run_batches

    def recording(prepared: Any, of_scan: Any, *args: Any, **kwargs: Any) -> None:
        for batch in of_scan.plan.batches:
            mask = batch.attention_mask
            padding = {} if mask is None else {"attention_mask": mask}
            inputs.append({"input_ids": batch.input_ids, **padding})
        run_batches(prepared, of_scan, *args, **kwargs)

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Step):
            found.setdefault("first forward", time.time() - BEGAN)

    runs.run_batches = recording
    prompts, own = Path(f"{batches}.jsonl"), None
    if prompts.exists():
        own = [json.loads(line)["token_ids"] for line in prompts.read_text().splitlines()]
    report = pipeline.scan(
        model,
        attn_implementations=attentions or None,
        prompts=own,
        observe=observe,
    )
    found["report"] = time.time() - BEGAN
    found["runs"] = [(run.dtype, run.attn_implementation, run.arithmetic) for run in report.runs]
    torch.save(inputs, batches)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
