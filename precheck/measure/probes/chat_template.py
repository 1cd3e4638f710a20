"""A checkpoint's chat template, rendered in a process of its own within bounds.

Jinja's sandbox keeps a template away from files and code, not from time and memory: two loops take
minutes, and one multiplication of a string takes as much memory as it likes before Python can
look. The system bounds both.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from precheck.errors import first_line
from precheck.signals import ENDING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from multiprocessing.connection import Connection

SECONDS = 10
MEMORY_BYTES = 1 << 30
"""Beyond what this process has."""
_MOST_FILES = 1 << 16
"""Descriptors are below it, unless somebody has opened more files than that."""
MOST_CHARACTERS = 100_000
"""A prompt has some hundred; the longest templates add ten thousand."""


class ChatTemplate:
    """Renders chats; a template that has failed is not tried again."""

    def __init__(self) -> None:
        self.problem: str | None = None
        """Why there is no text, in words."""

    def render(
        self, owner: Any, messages: Sequence[Mapping[str, Any]], **options: Any
    ) -> str | None:
        """The text of a chat that a model is to answer; None if the template does not make one.

        Args:
            owner: the tokenizer or the processor that has the template.
            messages: the chat.
            options: what ``apply_chat_template`` takes besides.
        """
        if self.problem is not None:
            return None
        context: Any = multiprocessing.get_context("fork")  # what is loaded stays loaded
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=_answer, args=(sender, owner, messages, options))
        try:
            with warnings.catch_warnings():
                # of other threads, which the child does not have and does not wait for
                warnings.simplefilter("ignore", DeprecationWarning)
                child.start()
            sender.close()
            text, self.problem = _received(receiver)
        except OSError as error:
            text, self.problem = None, f"the chat template cannot be run: {first_line(error)}"
        finally:
            receiver.close()
            if child.pid is not None:
                child.kill()
                child.join()
        return text


def _received(receiver: Connection) -> tuple[str | None, str | None]:
    """The text, or what is wrong with the template."""
    try:
        if not receiver.poll(SECONDS):
            return None, f"the chat template takes more than {SECONDS} seconds"
        text, problem = json.loads(receiver.recv_bytes())
    except EOFError:
        return None, "the chat template exceeds its limit of memory or time"
    return text, problem


def _answer(
    sender: Connection,
    owner: Any,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
) -> None:
    """Runs in the child: sends the text, or what is wrong."""
    for number in ENDING:  # the parent ends it
        signal.signal(number, signal.SIG_IGN)
    _close_others(sender.fileno())
    _limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + MEMORY_BYTES)
    _limit(resource.RLIMIT_CPU, SECONDS)
    _limit(resource.RLIMIT_CORE, 0)
    text: str | None = None
    problem: str | None = None
    try:
        text = str(
            owner.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **options
            )
        )
    except MemoryError:
        problem = "the chat template exceeds its memory limit"
    except Exception as error:  # noqa: BLE001  a template may raise anything
        problem = f"the chat template fails: {type(error).__name__}: {first_line(error)[:160]}"
    if text is not None and len(text) > MOST_CHARACTERS:
        problem = f"the chat template returns {len(text):,} characters"
        text = None
    sender.send_bytes(json.dumps((text, problem)).encode())


def _close_others(kept: int) -> None:
    """Close inherited files: a lock would be held as long as this process lives."""
    os.closerange(3, kept)
    os.closerange(kept + 1, _MOST_FILES)


def _limit(what: int, most: int) -> None:
    _, hard = resource.getrlimit(what)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with suppress(OSError, ValueError):  # not every system bounds memory; all bound time
        resource.setrlimit(what, (most, most))
