"""The arguments of a scan: checked, and as its request has them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from precheck.checkpoint.output.folders import check_empty, check_parent
from precheck.errors import UsageError
from precheck.facts import format_names
from precheck.records.configuration import Configuration
from precheck.records.precision import Accumulation, Dtype
from precheck.records.prompts import ImagePrompt
from precheck.records.traces import LONG_TEXT_TOKENS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from precheck.measure.request import Request
    from precheck.records.prompts import Prompt


def check_module(model: object) -> None:
    """Refuses what is no module.

    Raises:
        UsageError: it is none.
    """
    from torch import nn

    if not isinstance(model, nn.Module):
        raise UsageError(
            f"not a model: {model!r} (expected a folder, a Hub id, demo:NAME or a module)",
            hint="precheck.scan('Qwen/Qwen2-7B')",
        )


def each_of(values: object) -> tuple[Any, ...]:
    """The values of a sequence, or the one that was given in its place."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        return (values,)
    return tuple(values)


def as_dtype(name: Dtype | str | torch.dtype) -> Dtype:
    """A dtype by its name or as torch has it.

    Raises:
        UsageError: an unknown name.
    """
    return Dtype.named(str(name).removeprefix("torch."))


def as_configuration(name: Configuration | str) -> Configuration:
    """A configuration as ``--require`` spells it, its formats under precheck's names.

    Raises:
        UsageError: an unknown name.
    """
    configuration = Configuration.parse(name) if isinstance(name, str) else name
    return format_names.canonical(configuration)


def as_attentions(names: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Attention implementations by name; None where nothing was asked for."""
    return None if names is None else each_of(names)


def as_accumulations(names: Sequence[Accumulation | str] | None) -> tuple[Accumulation, ...] | None:
    """How products are added up, by name; None where nothing was asked for.

    Raises:
        UsageError: an unknown name.
    """
    return None if names is None else tuple(map(Accumulation.named, names))


def as_num_generated(generate: int) -> int:
    """How many tokens to generate.

    Raises:
        UsageError: a negative number.
    """
    if generate < 0:
        raise UsageError(f"generate is {generate} (expected 0 or more)", hint="--generate 16")
    return generate


def as_context(context: object) -> int | Literal["max"] | None:
    """Tokens of the longest text, ``max`` for the model's own context.

    Raises:
        UsageError: neither, or fewer than figures by position need.
    """
    if context is None or context == "max":
        return context
    if not isinstance(context, int) or isinstance(context, bool) or context < LONG_TEXT_TOKENS:
        raise UsageError(
            f"context is {context!r} (expected {LONG_TEXT_TOKENS} tokens or more, or max)",
            hint="--context 8192",
        )
    return context


def check_combination(model: str | Path | nn.Module, request: Request) -> None:
    """Refuses arguments that do not go together, before anything slow begins.

    Raises:
        UsageError: two of them do not.
    """
    is_run = request.prompts is not None or request.context is not None or request.num_generated
    if request.is_static and is_run:
        raise UsageError(
            "prompts, a context or tokens to generate, but static runs nothing",
            hint="omit --static to run them",
        )
    if request.is_static and (request.kv_cache_dtypes or request.quantizations):
        raise UsageError(
            "formats to measure, but static runs nothing", hint="omit --static to run them"
        )
    if request.is_full and not request.is_static:
        raise UsageError(
            "full, but not static (expected both)",
            hint="a scan that is not static reads all weights",
        )
    if request.is_streamed and (request.is_static or not isinstance(model, str | Path)):
        raise UsageError(
            "stream with static, or of a live module (expected a Hub id that is run)",
            hint="omit --stream: --static reads small tensors on the Hub",
        )
    if request.is_streamed and (request.is_resident or request.num_generated):
        raise UsageError(
            "stream with resident, or with tokens to generate, each of which needs all weights",
            hint="omit --stream: the weights are downloaded once then",
        )
    if request.capsule is None:
        return
    if request.is_static or not isinstance(model, str | Path):
        raise UsageError(
            "a capsule of a live module, or with static (expected a checkpoint that is run)",
            hint="save the model, and omit --static",
        )
    check_empty(
        request.capsule,
        what="folder for the capsule",
        hint="choose a new folder",
    )
    check_parent(request.capsule, hint="choose another path for the capsule")


def check_text(prompts: Sequence[Prompt]) -> None:
    """Refuses prompts that are neither text nor token ids.

    Raises:
        UsageError: one of them is.
    """
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str | ImagePrompt | Sequence):
            raise UsageError(
                f"prompt {number} is not understood: {prompt!r} (expected a text or token ids)",
                hint='precheck.scan(model, prompts=["a text", [1, 2, 3]])',
            )
        try:
            text = prompt.text if isinstance(prompt, ImagePrompt) else prompt
            if isinstance(text, str):
                text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"prompt {number} is not Unicode text: {prompt!r} (expected no lone surrogates)",
                hint="check that the terminal's encoding is UTF-8",
            ) from error
