"""A report in which everything that comes from outside tries to be more than text."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.judge import judge
from precheck.records.precision import Dtype
from precheck.records.stored import TensorFault
from precheck.records.traces import GREEDY, Generation, Probe, Symptom
from tests import hand_made

if TYPE_CHECKING:
    from precheck.records.report import Report

EVIL = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; [bold]x[/bold] "
    "**b** `c` ```d | e ![i](http://evil.example/i.png) @someone #1 $x$ <!-- {{ 7 * 7 }} "
    "\x1b]0;title\x07\x1b[2J\x9b31m\r\n\u202e\udc80"
)


def evil_report() -> Report:
    scan = hand_made.qwen2_eager()
    culprit = hand_made.scores_overflow(
        module=EVIL,
        code=EVIL,
        op=EVIL,
        source=f"{EVIL}:12",
        source_file=f"../{EVIL}",
        probes=(EVIL,),
        first_positions={EVIL: 3},
    )
    written = Generation(
        probe=EVIL,
        way=GREEDY,
        text=EVIL,
        num_tokens=3,
        first_difference=1,
        broken_step=1,
        overflow=culprit,
        error=EVIL,
    )
    broken = replace(
        scan.runs[3],
        attn_implementation=EVIL,
        requested_attn_implementation=EVIL,
        device=EVIL,
        overflows=(culprit,),
        symptom=Symptom(greedy=EVIL, sampling=EVIL),
        generations=(written,),
        stopped_after=EVIL,
        layers=tuple(replace(layer, module=EVIL) for layer in scan.runs[3].layers),
    )
    failed = hand_made.run(Dtype.FLOAT16, EVIL, failure=EVIL, layers=(), logits=None)
    environment = replace(
        scan.environment,
        libraries={EVIL: EVIL, "transformers": EVIL},
        cpu=EVIL,
        platform=EVIL,
        devices=tuple(
            replace(device, name=EVIL, driver=EVIL) for device in scan.environment.devices
        ),
    )
    scan = replace(
        scan,
        model=replace(
            scan.model, id=EVIL, architecture=EVIL, revision=EVIL, model_type=EVIL, clamps=(EVIL,)
        ),
        checkpoint=replace(
            scan.checkpoint,
            unexpected=(EVIL,),
            missing=(EVIL,),
            digest=EVIL,
            out_of_float16_range=(TensorFault(name=EVIL, num_elements=1, abs_max=1e9),),
        ),
        environment=environment,
        probes=(Probe(name=EVIL, kind=EVIL, num_tokens=3),),
        headroom=tuple(
            replace(row, module=EVIL, op=EVIL, source=EVIL, attn_implementation=EVIL)
            for row in scan.headroom
        ),
        runs=(*scan.runs[:3], broken, *scan.runs[4:], failed),
        complete=False,
        incomplete_reason=EVIL,
    )
    report = judge(scan, version=EVIL)
    return replace(
        report, findings=tuple(replace(finding, accepted=EVIL) for finding in report.findings)
    )
