"""The scans before and after a search."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.errors import PrecheckError
from precheck.measure.request import Request
from precheck.pipeline import judged
from precheck.records.configuration import Configuration
from precheck.records.precision import Dtype

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.hunt.request import HuntRequest
    from precheck.measure.lockstep.witness import Witness
    from precheck.measure.subject.subject import CheckpointSubject
    from precheck.records.progress import Observer
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report


def scanned(
    subject: CheckpointSubject,
    request: HuntRequest,
    *,
    witness: Witness,
    prompts: Sequence[Prompt] | None,
    observe: Observer,
) -> Report:
    """The report on the dtype that is hunted, with the attention that scans run.

    Args:
        subject: the checkpoint.
        request: of the hunt.
        witness: is shown what the report does not keep.
        prompts: to run; None: the built-in probes.
        observe: receives progress.

    Raises:
        PrecheckError: the scan could not be completed.
    """
    report = judged(
        subject,
        Request(
            dtypes=(request.dtype, Dtype.FLOAT32),
            required=(Configuration(dtype=request.dtype, attn_implementation=""),),
            prompts=prompts,
            quick=request.is_quick or prompts is not None,  # and nothing is padded
            device=request.device,
            max_memory=request.max_memory,
            trust_remote_code=request.trust_remote_code,
            witness=witness,
        ),
        observe=observe,
    )
    if not report.complete:
        raise PrecheckError(
            f"the scan is incomplete: {report.incomplete_reason}",
            hint="see what stops it: precheck scan MODEL",
        )
    return report
