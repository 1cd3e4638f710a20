"""Runs that a scan has saved: what they say of a server's answers, without the weights.

They were asked for the prompts and for what float32 writes after them, so that a server's answer
can be compared as long as it is the same text: at every position of the prompt, and up to the first
token that is another, whose position is still decided by what stands before it. A token that is not
among the saved ones is at most as likely as the last of them, so that no distance is exaggerated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from precheck.checkpoint.config import config_digest
from precheck.errors import UsageError
from precheck.measure.probes.builtin import TextPrompt
from precheck.measure.probes.vocabulary import read_vocabulary
from precheck.records.quantities import counted
from precheck.served.questions import Question, Tokens
from precheck.served.readings import NUM_TOP, Reading, compared_places
from precheck.served.runs.said import Said

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from numpy.typing import NDArray

    from precheck.checkpoint.naming.location import Description
    from precheck.records.outcomes.saved_logits import SavedProbe
    from precheck.records.outcomes.served import Answer
    from precheck.served.runs.file import SavedLogits

_AGAIN = "save them again: precheck scan MODEL --save-logits FILE"


@dataclass(frozen=True, kw_only=True)
class SavedRuns:
    """Runs of a checkpoint whose log-probabilities were saved."""

    id: str
    revision: str | None
    tokens: Tokens
    saved: SavedLogits

    @classmethod
    def of(cls, description: Description, saved: SavedLogits) -> Self:
        """Those of a checkpoint whose weights nobody needs.

        Args:
            description: its config and its tokenizer.
            saved: the log-probabilities.

        Raises:
            UsageError: they are another checkpoint's.
        """
        contents = saved.contents
        config = config_digest(description.folder)
        if config is not None and contents.config is not None and config != contents.config:
            raise UsageError(
                f"saved log-probabilities of another checkpoint: {contents.model!r}"
                f" (expected the config.json of {description.id!r})",
                hint=_AGAIN,
            )
        tokens = Tokens(read_vocabulary(description, size=contents.vocab_size))
        for probe in contents.probes:
            if probe.text is not None and _ids(probe, probe.text, tokens) != probe.ids:
                raise UsageError(
                    f"the tokenizer of {description.id!r} makes other tokens of {probe.name} than"
                    f" {contents.model!r} had when its log-probabilities were saved",
                    hint=_AGAIN,
                )
        return cls(id=description.id, revision=description.revision, tokens=tokens, saved=saved)

    @property
    def is_of_own_prompts(self) -> bool:
        """Whether the prompts are the user's."""
        return self.saved.contents.is_of_own_prompts

    @property
    def saved_weights(self) -> str:
        """Digest of the weights that ran; empty where the scan has none."""
        return self.saved.contents.weights or ""

    @property
    def max_context(self) -> int | None:
        """The longest input that the model allows."""
        return self.saved.contents.max_context

    def questions(self) -> tuple[Question, ...]:
        """The prompts that were saved."""
        return tuple(
            Question(name=probe.name, ids=probe.ids, text=probe.text, is_chat=probe.is_chat)
            for probe in self.saved.contents.probes
        )

    def say(self, answers: Sequence[Answer]) -> Said:
        """What the saved runs say of these answers."""
        contents = self.saved.contents
        probes = {probe.name: probe for probe in contents.probes}
        cut: dict[str, Answer] = {}
        why: dict[str, str] = {}
        for answer in answers:
            probe = probes[answer.name]
            if answer.prompt != probe.ids:
                why[answer.name] = "as the server reads it, it was not saved"
            elif answer.generated and probe.generated:
                cut[answer.name] = _cut(answer, probe)
                rest = len(answer.generated) - len(cut[answer.name].generated)
                if rest:
                    why[answer.name] = f"{counted(rest, 'token')} after the saved continuation"
        if not cut:
            return Said(answers=(), readings={}, not_compared=why)
        return Said(
            answers=tuple(cut.values()),
            readings={
                configuration: {
                    name: _recalled(of_run[name], probes[name], answer)
                    for name, answer in cut.items()
                }
                for configuration, of_run in self.saved.readings.items()
            },
            failures={
                run.configuration: run.failure for run in contents.runs if run.failure is not None
            },
            verdicts={
                run.configuration: run.verdict for run in contents.runs if run.verdict is not None
            },
            libraries=contents.libraries,
            not_compared=why,
        )


def _ids(probe: SavedProbe, text: str, tokens: Tokens) -> tuple[int, ...]:
    """What a tokenizer makes of the text of a probe."""
    kind = "chat" if probe.is_chat else "text"
    return tuple(tokens.vocabulary.encode(TextPrompt(name="", text=text, kind=kind)) or ())


def _cut(answer: Answer, probe: SavedProbe) -> Answer:
    """Up to the first token that the saved continuation does not have, that one included."""
    pairs = zip(answer.generated, probe.generated, strict=False)
    same = next((i for i, (one, other) in enumerate(pairs) if one != other), len(probe.generated))
    return replace(
        answer,
        generated=answer.generated[: same + 1][: len(probe.generated)],
        generated_places=answer.generated_places[: same + 1][: len(probe.generated)],
    )


def _recalled(saved: Reading, probe: SavedProbe, answer: Answer) -> Reading:
    """What a saved run says at the positions of an answer."""
    places = compared_places(answer)
    first = 0 if answer.prompt_places else len(probe.ids) - 1
    rows = slice(first, first + len(places))
    stood = (*probe.ids[1:], *probe.generated)[rows]
    tokens = np.array([place.token for place in places], dtype=np.int64)
    at_stood, top, top_ids = saved.at_token[rows], saved.top[rows], saved.top_ids[rows]
    width = max((len(place.ids) for place in places), default=0)
    told = np.full((len(places), width), -1, dtype=np.int64)
    for row, place in enumerate(places):
        told[row, : len(place.ids)] = place.ids
    known = (np.array(stood, dtype=np.int64)[:, None], at_stood[:, None], top_ids, top)
    at_token = _looked_up(tokens[:, None], *known)[:, 0]
    is_same = tokens == known[0][:, 0]
    return Reading(
        at_told=np.where(told < 0, -np.inf, _looked_up(told, *known)),
        at_token=at_token,
        rank=np.where(is_same, saved.rank[rows], (top > at_token[:, None]).sum(axis=1)),
        lowest=saved.lowest[rows],
        top=top[:, :NUM_TOP],
        top_ids=top_ids[:, :NUM_TOP],
    )


def _looked_up(
    wanted: NDArray[np.int64],
    stood: NDArray[np.int64],
    at_stood: NDArray[np.float64],
    top_ids: NDArray[np.int64],
    top: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Log-probabilities of tokens, each ``(positions, wanted)``, or what they are at most.

    Args:
        wanted: token ids.
        stood: the token of the saved text, ``(positions, 1)``.
        at_stood: its log-probability.
        top_ids: the likeliest tokens, ``(positions, kept)``.
        top: theirs, falling.
    """
    is_it = wanted[:, :, None] == top_ids[:, None, :]
    column = is_it.argmax(axis=2)
    found = np.take_along_axis(top, column, axis=1)
    found = np.where(is_it.any(axis=2), found, top[:, -1:])
    return np.where(wanted == stood, at_stood, found)
