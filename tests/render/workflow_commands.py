"""Workflow commands as the runner of GitHub Actions reads them from a step's output.

**Source**: ``TryParseV2`` and ``TryParse`` of ``ActionCommand.cs``, https://github.com/actions/runner
"""

from __future__ import annotations

from typing import NamedTuple

REGISTERED = frozenset(
    {
        "add-mask",
        "add-matcher",
        "add-path",
        "debug",
        "echo",
        "endgroup",
        "error",
        "group",
        "notice",
        "remove-matcher",
        "save-state",
        "set-env",
        "set-output",
        "stop-commands",
        "warning",
    }
)


class Command(NamedTuple):
    """What the runner would do."""

    name: str
    properties: dict[str, str]
    data: str


def acted_on(output: str) -> list[Command]:
    """The commands that a step's output makes the runner carry out."""
    resume: str | None = None
    commands = []
    for line in output.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        known = REGISTERED if resume is None else REGISTERED | {resume}
        command = _read(line, known) or _read_old(line, known)
        if command is None:
            continue
        if resume is not None:
            resume = None if command.name == resume else resume
        elif command.name == "stop-commands":
            resume = command.data
        else:
            commands.append(command)
    return commands


def _read(line: str, known: frozenset[str]) -> Command | None:
    """``::name key=value,key=value::data``, at the start of a line."""
    line = line.lstrip()
    begins, ends = line.startswith("::"), line.find("::", 2)
    if not begins or ends < 0:
        return None
    name, _, properties = line[2:ends].partition(" ")
    if name.lower() not in known:
        return None
    pairs = (each.partition("=") for each in properties.strip().split(",") if each)
    values = {key: _unescaped(value, also=":,") for key, _, value in pairs if key and value}
    return Command(name.lower(), values, _unescaped(line[ends + 2 :]))


def _read_old(line: str, known: frozenset[str]) -> Command | None:
    """``##[name key=value;key=value]data``, anywhere in a line."""
    _, begins, rest = line.partition("##[")
    inside, ends, data = rest.partition("]")
    name = inside.partition(" ")[0].lower()
    if not begins or not ends or name not in known:
        return None
    return Command(name, {}, _unescaped(data, also=";]"))


def _unescaped(text: str, *, also: str = "") -> str:
    for character in f"\r\n{also}%":
        text = text.replace(f"%{ord(character):02X}", character)
    return text
