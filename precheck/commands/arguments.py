"""What a user typed, as the values a scan takes; whatever is wrong with it is a usage error."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeVar

from precheck.errors import UsageError, unknown
from precheck.records.precision import Dtype
from precheck.records.prompts import ImagePrompt, Prompt
from precheck.render import SUFFIXES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

_Choice = TypeVar("_Choice", bound=StrEnum)

_JSON_PROMPTS = (
    'write one object per line, like {"text": "Hello"}, {"token_ids": [1, 2]} or '
    '{"text": "What is this?", "images": ["photo.png"]}'
)


def dtypes(text: str) -> tuple[Dtype | Literal["auto"], ...]:
    """The dtypes of a comma list, each once; ``auto`` is the checkpoint's own.

    >>> dtypes("fp16,auto")
    (<Dtype.FLOAT16: 'float16'>, 'auto')
    """
    return tuple(
        "auto" if name == "auto" else Dtype.named(name) for name in names(text, flag="--dtype")
    )


def choice(kind: type[_Choice], text: str, *, what: str) -> _Choice:
    """The value of a closed choice, in any case.

    Raises:
        UsageError: there is none of that name; the hint names a close one.
    """
    for value in kind:
        if value == text.strip().lower():
            return value
    raise unknown(what, text, kind, hint="")


def each(texts: Sequence[str] | None) -> tuple[str, ...]:
    """The values of a repeatable option, which may be comma lists too.

    >>> each(["T4,A100", "H100"])
    ('T4', 'A100', 'H100')
    """
    return tuple(name.strip() for text in texts or () for name in text.split(","))


def names(text: str, *, flag: str) -> tuple[str, ...]:
    """The names of a comma list, each once.

    >>> names("sdpa, eager,sdpa", flag="--attn")
    ('sdpa', 'eager')
    """
    listed = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if "" in listed:
        raise UsageError(
            f"empty name in {flag}: {text!r} (expected names separated by commas)",
            hint=f"remove the empty name, or {flag} altogether",
        )
    return listed


def listed(text: str | None, *, flag: str) -> tuple[str, ...] | None:
    """The names of a comma list as :func:`names`; None where the flag was not given."""
    return None if text is None else names(text, flag=flag)


_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])?(i)?B?", re.IGNORECASE | re.ASCII)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def context(text: str | None) -> int | Literal["max"] | None:
    """The number of tokens that ``--context`` names, or ``max``.

    >>> context("8192"), context("max")
    (8192, 'max')

    Raises:
        UsageError: neither.
    """
    if text is None:
        return None
    if text == "max":
        return "max"
    if not text.isascii() or not text.isdecimal():
        raise UsageError(
            f"--context: {text!r} (expected a number of tokens, or max)", hint="--context 8192"
        )
    return int(text)


def size(text: str | None, *, flag: str) -> int | None:
    """Bytes: ``4GiB`` and ``4G`` are powers of 1,024, ``4GB`` of 1,000; None stays None.

    >>> size("1.5GiB", flag="--max-memory"), size("2GB", flag="--max-memory")
    (1610612736, 2000000000)

    Raises:
        UsageError: it is not a size, or zero.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise UsageError(
            f"not a size: {text!r} for {flag} (expected a number and a unit)", hint=f"{flag} 4GiB"
        )
    is_decimal = text.strip().upper().endswith("B") and not match[3]
    return int(
        float(match[1]) * (1000 if is_decimal else 1024) ** _POWERS[(match[2] or "").upper()]
    )


def check_format(path: Path) -> None:
    """Check that a format has this file's suffix.

    Raises:
        UsageError: no format has it.
    """
    if path.suffix not in SUFFIXES:
        hint = "the suffix of -o selects the format"
        raise unknown("report format", str(path), SUFFIXES, hint=hint)


def check_output(path: Path) -> None:
    """Check that a report can be written there; called before a scan, so that none is wasted.

    Raises:
        UsageError: the file could not be written.
    """
    try:
        folder, exists = path.resolve().parent, path.exists()
        with suppress(FileNotFoundError):
            path.parent.stat()  # since Python 3.13 resolving passes over loops
    except (OSError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise UsageError(
            f"cannot write report: {str(path)!r}: {getattr(error, 'strerror', None) or error}",
            hint="choose another path",
        ) from error
    if not folder.exists():
        raise UsageError(
            f"output folder does not exist: {str(folder)!r}", hint=f"mkdir -p {folder}"
        )
    if not folder.is_dir():
        raise UsageError(f"not a folder: {str(folder)!r}", hint="choose another path")
    if exists and not path.is_file():
        raise UsageError(f"output is not a regular file: {str(path)!r}", hint="choose another path")
    if not os.access(folder, os.W_OK) or (exists and not os.access(path, os.W_OK)):
        raise UsageError(f"output is not writable: {str(path)!r}", hint="choose another path")


def prompts(texts: Sequence[str], file: Path | None) -> tuple[Prompt, ...] | None:
    """The prompts given as text and in a file; None if there are none."""
    if "" in texts:
        raise UsageError(
            "empty prompt (expected a text)", hint="leave --prompt out for the built-in probes"
        )
    return (*texts, *(read_prompts(file) if file else ())) or None


def read_prompts(file: Path) -> tuple[Prompt, ...]:
    """The prompts of a file: JSON lines if it is named ``.jsonl``, else one text per line.

    Raises:
        UsageError: the file is missing, not UTF-8, empty, or a line is not a prompt.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"prompts file is not UTF-8: {str(file)!r}, byte {error.start}",
            hint="convert it to UTF-8",
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot read prompts file: {str(file)!r}: {error.strerror}",
            hint="check the spelling and the permissions",
        ) from error
    # Not splitlines(): a prompt may hold U+2028 and other separators that it breaks at.
    lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise UsageError(
            f"prompts file is empty: {str(file)!r}",
            hint="write one prompt per line, or leave --prompts out",
        )
    if file.suffix != ".jsonl":
        return tuple(line.removesuffix("\r") for _, line in lines)
    return tuple(_json_prompts(lines, file=file))


def _json_prompts(lines: Iterable[tuple[int, str]], *, file: Path) -> Iterator[Prompt]:
    for number, line in lines:
        where = f"prompts file {str(file)!r}, line {number}"
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not JSON: {error}", hint=_JSON_PROMPTS) from error
        match fields:
            case {"text": str(text), "images": [*images], **rest} if text and images and not rest:
                yield ImagePrompt(text=text, images=_paths(images, file=file, where=where))
            case {"text": str(text), **rest} if text and not rest:
                yield text
            case {"token_ids": [*token_ids], **rest} if token_ids and not rest:
                # type(), because True is an int too.
                if not all(type(token) is int and token >= 0 for token in token_ids):
                    raise UsageError(
                        f'{where}: "token_ids" contains something other than token ids',
                        hint=_JSON_PROMPTS,
                    )
                yield tuple(token_ids)
            case _:
                raise UsageError(
                    f'{where}: not a prompt (expected an object with "text" or "token_ids")',
                    hint=_JSON_PROMPTS,
                )


def _paths(images: Sequence[object], *, file: Path, where: str) -> tuple[str, ...]:
    """Paths of images; relative ones are relative to the prompts file."""
    if not all(isinstance(image, str) and image for image in images):
        raise UsageError(
            f'{where}: "images" contains something other than paths', hint=_JSON_PROMPTS
        )
    return tuple(str(file.parent / str(image)) for image in images)
