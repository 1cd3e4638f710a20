"""Sweeps that bug reports ask for: first tokens, repeated tokens, delimiters, lengths."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from precheck.measure.probes.builtin import BUILTIN, LONG

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from precheck.measure.hunt.text_space import Ids
    from precheck.measure.hunt.trial import Trial

DELIMITERS = (
    "\n",
    "\n\n",
    "\t",
    " ",
    "  ",
    ".",
    ",",
    "...",
    "-",
    "=",
    "#",
    "*",
    "_",
    "`",
    '"',
    "'",
    "(",
    "[",
    "{",
    "<",
    "/",
    "\\",
    "|",
    "!",
    "?",
    ":",
    ";",
    "0",
    "1",
    "A",
    "a",
    "x",
)
LENGTHS = (16, 64, 256, 1024)
MOST_REPEATED = 512
"""Tokens that are repeated; only those that make something larger are repeated more often."""
_PIECE = 8192
"""Tokens of a vocabulary between two looks at the clock."""


def probes(trial: Trial, inputs: Iterable[Ids]) -> None:
    """What the scan ran, and some random token ids: where a search starts."""
    trial.run(inputs)
    generator = trial.generator("probes")
    size = trial.space.vocabulary.size
    trial.run(tuple(row) for row in torch.randint(size, (8, 16), generator=generator).tolist())


def first_tokens(trial: Trial, *, likely: Iterable[int]) -> None:
    """Every token as the first of a text, and behind another one; the likely ones first.

    In a decoder the first of two tokens is also the only one. Of a model that is too large for the
    time, only the first layers are run, and then all of them for what was best there.
    """
    other = filler(trial)
    length = len(trial.space.wrapped((other, other)))
    wanted = trial.affordable(2 * length * len(trial.space.tokens))
    for tokens in _pieces(trial, likely):
        trial.run_single(tokens, other, is_first=True, wanted=wanted)
        trial.run_single(tokens, other, is_first=False, wanted=wanted)
    if wanted is not None:
        trial.run(trial.archive.elites(wanted))


def odd_ids(trial: Trial) -> None:
    """Ids that no text has, and texts without what the tokenizer puts before them."""
    other = filler(trial)
    for start in range(0, len(trial.space.others), _PIECE):
        trial.run_cores((token, other) for token in trial.space.others[start : start + _PIECE])
    if trial.space.before:
        trial.run(ids[len(trial.space.before) :] for ids in trial.archive.elites(trial.aims()))


def repeated(trial: Trial) -> None:
    """Tokens repeated, as long as that makes something larger, up to the context."""
    candidates = _delimiters(trial)
    for ids in trial.archive.elites(trial.aims()):
        core = trial.space.core(ids) or ids
        candidates += [(token,) for token in dict.fromkeys(core)]
        candidates.append(core)
    tried = list(dict.fromkeys(candidates))[:MOST_REPEATED]
    for length in LENGTHS:
        fits = [core for core in tried if length <= (trial.space.longest or length)]
        repeats = {_to_length(core, length): core for core in fits}
        trial.run_cores(repeats)
        kept = {trial.space.core(ids) for ids in trial.archive.elites(trial.aims())}
        tried = [core for longer, core in repeats.items() if longer in kept]


def every_token_repeated(trial: Trial, *, times: int) -> None:
    """Every token of the vocabulary, some times over."""
    for tokens in _pieces(trial, ()):
        trial.run_cores((token,) * times for token in tokens)


def lengths(trial: Trial, *, longest: int) -> None:
    """Texts as long as the context, and of lengths on the way: in a decoder each has all shorter.

    Args:
        trial: the search.
        longest: tokens that memory allows.
    """
    longest = min(longest, trial.space.longest or longest)
    text = trial.space.encoded(LONG.text) or ()
    core = (trial.space.core(text) if text else None) or (filler(trial),)
    generator = trial.generator("lengths")
    tokens = trial.space.tokens
    drawn = torch.randint(len(tokens), (longest,), generator=generator).tolist()
    anything = tuple(tokens[index] for index in drawn)
    length, seconds = 8, 0.0
    while length < 2 * longest:
        size = min(length, longest)
        if trial.seconds_left < 8.0 * seconds:  # attention to all of it costs four times as much
            return
        before = trial.budget.spent
        trial.run_cores([_to_length(core, size), anything[:size], (filler(trial),) * size])
        seconds = trial.budget.spent - before
        length *= 2


def filler(trial: Trial) -> int:
    """A token that says nothing: the last of an ordinary text."""
    ids = trial.space.encoded(BUILTIN[0].text)
    core = trial.space.core(ids) if ids else None
    return core[-1] if core else 0


def _pieces(trial: Trial, likely: Iterable[int]) -> Iterator[list[int]]:
    """The vocabulary's texts of one token in pieces, in an order that is drawn."""
    allowed = set(trial.space.tokens)
    first = [token for token in dict.fromkeys(likely) if token in allowed]
    rest = torch.tensor(sorted(allowed.difference(first)), dtype=torch.long)
    order = torch.randperm(len(rest), generator=trial.generator("vocabulary"))
    tokens = [*first, *rest[order].tolist()]
    part = trial.part
    for start in range(trial.positions.get(part, 0), len(tokens), _PIECE):
        yield tokens[start : start + _PIECE]
        trial.positions[part] = start + _PIECE


def _delimiters(trial: Trial) -> list[Ids]:
    found = [trial.space.encoded(text) for text in DELIMITERS]
    cores = [trial.space.core(ids) for ids in found if ids]
    return [core for core in cores if core]


def _to_length(core: Ids, length: int) -> Ids:
    return (core * (length // len(core) + 1))[:length]
