"""A report on stdout and in files, in the formats that were asked for."""

from __future__ import annotations

import getpass
import shutil
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Self

from precheck.commands import arguments, terminal
from precheck.errors import UsageError
from precheck.records.prompts import ImagePrompt
from precheck.render import (
    RENDERERS,
    SUFFIXES,
    Format,
    render_brief,
    render_console,
)
from precheck.render.parts.redaction import redacted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.gate import Gate
    from precheck.records.prompts import Prompt
    from precheck.records.report import Report


class Detail(Enum):
    """How much of a report the terminal shows."""

    BRIEF = auto()
    TABLES = auto()
    ALL_LAYERS = auto()

    @classmethod
    def of(cls, *, verbose: bool, all_layers: bool) -> Self:
        """What ``-v`` and ``--all-layers`` ask for."""
        if all_layers:
            return cls.ALL_LAYERS
        return cls.TABLES if verbose else cls.BRIEF


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Where a report goes, and what is left out of it.

    ``redact`` None leaves out what is private in the formats that are made to be public.
    """

    files: tuple[tuple[Path, Format], ...]
    stdout_format: Format
    redact: bool | None
    detail: Detail
    quiet: bool = False
    """No table on stdout, and no word of the files; other formats on stdout stay."""
    prompts: tuple[str, ...] = ()

    def on_stdout(self, report: Report, gate: Gate, *, engine: str) -> None:
        """Writes it there.

        Args:
            report: what was measured.
            gate: what the table begins with.
            engine: the one to show the command for.

        Raises:
            UsageError: stdout cannot be written.
        """
        report = self._fit(report, self.stdout_format)
        if self.stdout_format is not Format.TABLE:
            terminal.write_stdout(RENDERERS[self.stdout_format].render(report))
        elif not self.quiet:
            terminal.write_stdout(self._table(report, gate, engine=engine))

    def _table(self, report: Report, gate: Gate, *, engine: str) -> str:
        width, colour = shutil.get_terminal_size().columns, terminal.has_colour()
        if self.detail is Detail.BRIEF:
            return render_brief(report, gate, engine=engine, width=width, colour=colour)
        return render_console(
            report,
            width=width,
            colour=colour,
            all_layers=self.detail is Detail.ALL_LAYERS,
            gate=gate,
        )

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
                if not self.quiet:
                    terminal.say(
                        f"{'wrote' if report.complete else 'partial results written to'} {path}"
                    )
            except UsageError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _fit(self, report: Report, format_: Format) -> Report:
        if not (format_.is_public if self.redact is None else self.redact):
            return report
        return redacted(report, home=home_folder(), names=user_names(), prompts=self.prompts)


def plan_writing(
    *,
    output: Sequence[Path] | None,
    card: Path | None,
    stdout_format: Format,
    redact: bool | None,
    detail: Detail,
    quiet: bool = False,
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
        detail=detail,
        quiet=quiet,
        prompts=tuple(text for text in texts if isinstance(text, str)),
    )


def home_folder() -> str | None:
    """The home folder; None where nobody has said where it is."""
    try:
        return str(Path.home())
    except RuntimeError:
        return None


def user_names() -> tuple[str, ...]:
    """The name of whoever runs this; ``root`` names nobody."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a user without a name
        return ()
    return () if name == "root" else (name,)
