"""A report on stdout and in files, in the formats that were asked for."""

from __future__ import annotations

import getpass
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.commands import arguments, terminal
from precheck.errors import UsageError
from precheck.records.prompts import ImagePrompt
from precheck.render import RENDERERS, SUFFIXES, Format, render_console
from precheck.render.parts.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.prompts import Prompt
    from precheck.records.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Where a report goes, and what is left out of it.

    ``redact`` None leaves out what is private in the formats that are made to be public.
    """

    files: tuple[tuple[Path, Format], ...]
    stdout_format: Format
    redact: bool | None
    all_layers: bool
    prompts: tuple[str, ...] = ()

    def on_stdout(self, report: Report) -> None:
        """Writes it there.

        Raises:
            UsageError: stdout cannot be written.
        """
        report = self._fit(report, self.stdout_format)
        if self.stdout_format is Format.TABLE:
            width = shutil.get_terminal_size().columns
            text = render_console(
                report, width=width, colour=terminal.has_colour(), all_layers=self.all_layers
            )
        else:
            text = RENDERERS[self.stdout_format].render(report)
        terminal.write_stdout(text)

    def into_files(self, report: Report) -> None:
        """Writes every file, also those after one that fails: a scan is expensive.

        Raises:
            UsageError: one of them could not be written.
        """
        failures: list[UsageError] = []
        for path, format_ in self.files:
            try:
                text = RENDERERS[format_].render(self._fit(report, format_))
                terminal.write_whole(path, text)
            except UsageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _fit(self, report: Report, format_: Format) -> Report:
        if not (format_.is_public if self.redact is None else self.redact):
            return report
        return redacted(report, home=_home(), names=_user(), prompts=self.prompts)


def plan_writing(
    *,
    output: Sequence[Path] | None,
    card: Path | None,
    stdout_format: Format,
    redact: bool | None,
    all_layers: bool,
    prompts: Sequence[Prompt] | None = None,
) -> Writing:
    """Checked before anything long begins.

    Raises:
        UsageError: no format has a file's suffix, or a file cannot be written.
    """
    for path in output or ():
        arguments.check_format(path)
    files = [(path, SUFFIXES[path.suffix]) for path in output or ()]
    if card is not None:
        files.append((card, Format.CARD))
    for path, _ in files:
        arguments.check_output(path)
    texts = (prompt.text if isinstance(prompt, ImagePrompt) else prompt for prompt in prompts or ())
    return Writing(
        files=tuple(files),
        stdout_format=stdout_format,
        redact=redact,
        all_layers=all_layers,
        prompts=tuple(text for text in texts if isinstance(text, str)),
    )


def _home() -> str | None:
    try:
        return str(Path.home())
    except RuntimeError:  # nobody has said where it is
        return None


def _user() -> tuple[str, ...]:
    """The name of whoever runs this; ``root`` names nobody."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ()
    return () if name == "root" else (name,)
