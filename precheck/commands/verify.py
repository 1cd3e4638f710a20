"""``precheck verify``: a running engine compared with the checkpoint that it serves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from precheck.commands import arguments, terminal
from precheck.commands.gating import EXIT_CODES
from precheck.commands.importing import import_torch
from precheck.commands.options import (
    DTYPES,
    AttnImplementations,
    Debug,
    Device,
    Dtypes,
    KvCacheDtypes,
    MaxMemory,
    Model,
    PromptFile,
    PromptText,
    Quantizations,
    Quiet,
    Redact,
    Revision,
    TrustRemoteCode,
)
from precheck.commands.verify_options import (
    ApiKeyEnv,
    Concurrency,
    NumAsked,
    RequireServed,
    Retries,
    SavedLogitsFile,
    ScanReport,
    ServedModel,
    Timeout,
    Url,
    VerifyOutput,
)
from precheck.commands.writing import home_folder, user_names
from precheck.errors import ExitCode, UsageError, unknown
from precheck.facts import format_names
from precheck.records.configuration import Configuration
from precheck.saved import read_report
from precheck.served.gate import is_met, judge
from precheck.served.request import VerifyRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from precheck.records.outcomes.served import Served
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report
    from precheck.served.runs.file import SavedLogits

_SUFFIXES = (".json", ".md")


def verify(
    url: Url,
    model: Model,
    *,
    served_model: ServedModel = None,
    api_key_env: ApiKeyEnv = "PRECHECK_API_KEY",
    timeout: Timeout = 60.0,
    retries: Retries = 2,
    concurrency: Concurrency = 4,
    report: ScanReport = None,
    logits: SavedLogitsFile = None,
    revision: Revision = None,
    dtype: Dtypes = DTYPES,
    attn: AttnImplementations = None,
    kv_cache_dtype: KvCacheDtypes = None,
    quantization: Quantizations = None,
    device: Device = "auto",
    trust_remote_code: TrustRemoteCode = False,
    prompt: PromptText = None,
    prompts: PromptFile = None,
    generate: NumAsked = 16,
    max_memory: MaxMemory = None,
    output: VerifyOutput = None,
    redact: Redact = None,
    require: RequireServed = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare the engine at URL with MODEL, and say which configuration it really runs.

    Exit code 0: PASS, 1: an error was found or --require does not hold, 2: usage, 3: incomplete.
    """
    del debug
    for path in output or ():
        if path.suffix not in _SUFFIXES:
            hint = "the suffix of -o selects the format"
            raise unknown("format of a served run", str(path), _SUFFIXES, hint=hint)
        arguments.check_output(path)
    required = tuple(format_names.canonical(Configuration.parse(text)) for text in require or ())
    given = None if report is None else read_report(report)
    saved = None
    if logits is not None:
        unused = {
            "--dtype": dtype != DTYPES,
            "--attn": attn,
            "--kv-cache-dtype": kv_cache_dtype,
            "--quantization": quantization,
            "--prompt": prompt,
            "--prompts": prompts,
        }
        saved = _saved(logits, given, required=required, unused=unused)
    own = arguments.prompts(prompt or (), prompts)
    request = VerifyRequest(
        dtypes=arguments.dtypes(dtype),
        attn_implementations=arguments.listed(attn, flag="--attn"),
        kv_cache_dtypes=format_names.cache_names(
            arguments.listed(kv_cache_dtype, flag="--kv-cache-dtype") or ()
        ),
        quantizations=format_names.weight_names(
            arguments.listed(quantization, flag="--quantization") or ()
        ),
        measured=required + (() if given is None else given.deployable),
        prompts=own,
        num_generated=generate,
        served_model=served_model,
        concurrency=concurrency,
        seconds=timeout,
        retries=retries,
        key=_key(api_key_env),
        device=device,
        max_memory=arguments.size(max_memory, flag="--max-memory"),
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    try:
        with terminal.progress(quiet=quiet) as observe:
            import_torch(observe)
            from precheck.served.verify import verify as verify_server

            served = verify_server(
                url, model, request=request, report=given, logits=saved, observe=observe
            )
    except KeyboardInterrupt as interrupted:
        terminal.say("interrupted")
        raise typer.Exit(ExitCode.INTERRUPTED) from interrupted
    outcome, reason = judge(served, required)
    texts = (own or ()) if saved is None else saved.contents.own_prompts
    _write(served, output=output or (), redact=redact, prompts=texts, quiet=quiet)
    terminal.say(f"{outcome}: {reason}")
    raise typer.Exit(EXIT_CODES[outcome])


def _saved(
    path: Path,
    report: Report | None,
    *,
    required: Sequence[Configuration],
    unused: Mapping[str, object],
) -> SavedLogits:
    """The saved log-probabilities.

    Args:
        path: of the file.
        report: of a scan of the same weights.
        required: configurations that it has to have.
        unused: flags, and what they say, that choose what the file has chosen.

    Raises:
        ReportError: the file cannot be read.
        UsageError: it does not go with the other flags.
    """
    flags = [flag for flag, value in unused.items() if value]
    if flags:
        raise UsageError(
            f"{' and '.join(flags)} with --logits (expected none of them: the file has its"
            " configurations and its prompts)",
            hint="omit --logits, or save others: precheck scan MODEL --save-logits FILE",
        )
    from precheck.served.runs.file import read_logits

    saved = read_logits(path)
    weights = None if report is None else report.checkpoint.digest
    if None not in {weights, saved.contents.weights} and weights != saved.contents.weights:
        raise UsageError(
            f"{str(path)!r} is of other weights than the report",
            hint="write both in one scan: precheck scan MODEL --save-logits FILE -o report.json",
        )
    known = [run.configuration for run in saved.contents.finished]
    absent = [one for one in required if not is_met(one, known)]
    if absent:
        raise UsageError(
            f"{absent[0]} is not among the configurations of {str(path)!r} (expected one of:"
            f" {', '.join(map(str, known))})",
            hint=f"save it too: precheck scan MODEL --require {str(absent[0]).replace(' ', '')}"
            " --save-logits FILE",
        )
    return saved


def _key(variable: str) -> str | None:
    """The API key, which is never shown.

    Raises:
        UsageError: the variable holds what no header can.
    """
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable():
        raise UsageError(
            f"the key in {variable} is not printable ASCII", hint=f"set {variable} again"
        )
    return key


def _write(
    served: Served,
    *,
    output: Sequence[Path],
    redact: bool | None,
    prompts: Sequence[Prompt],
    quiet: bool,
) -> None:
    from precheck.render.formats.served_report import render_bug_report, render_json
    from precheck.render.parts.served.redaction import redacted_served
    from precheck.render.screens.served import render_served

    private = redacted_served(
        served,
        home=home_folder(),
        names=user_names(),
        prompts=[one for one in prompts if isinstance(one, str)],
    )
    if not quiet:
        width = shutil.get_terminal_size().columns
        shown = private if redact else served
        terminal.write_stdout(render_served(shown, width=width, colour=terminal.has_colour()))
    for path in output:
        is_public = path.suffix == ".md"
        kept = private if (is_public if redact is None else redact) else served
        terminal.write_whole(path, render_bug_report(kept) if is_public else render_json(kept))
        if not quiet:
            terminal.say(f"wrote {path}")
