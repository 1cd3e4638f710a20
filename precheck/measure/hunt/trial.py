"""Tries inputs, keeps the best, and ends a search in time."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from precheck.measure.hunt.archive import KEPT, Archive, Catch
from precheck.measure.hunt.budget import Budget, PartOverError, SearchOverError
from precheck.measure.hunt.evaluator import in_steps
from precheck.measure.probes.media import QUESTION
from precheck.records.mechanism import Mechanism

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import Tensor

    from precheck.measure.hunt.evaluator import Evaluator
    from precheck.measure.hunt.factors import Factors
    from precheck.measure.hunt.pictures import PictureSpace
    from precheck.measure.hunt.targets import Target
    from precheck.measure.hunt.text_space import Ids, TextSpace
    from precheck.records.outcomes.hunt import Picture

BATCH_TOKENS = 4096
"""Run together: a forward of a small model takes milliseconds, whatever it holds."""


MOST_LOGITS = 1 << 22
"""Of a batch: 16 MiB in float32. A vocabulary of 32,000 tokens has as many for 131 inputs."""
NEAR = 16.0
"""Logits that reach a limit when they are so many times larger are never left out."""


@dataclass(slots=True, eq=False, kw_only=True)
class Trial:
    """What all parts of a search share.

    Args:
        evaluator: runs the model.
        space: what is a text.
        pictures: what images the model takes; None where it takes none.
        archive: the best inputs.
        budget: when to end.
        limit: the largest finite value of the dtype.
        is_aim: says of which targets the search is to find the worst.
        ends_at_first: end when one of these exceeds the limit.
        seed: of everything that is drawn.
        factors: what products multiply.
        report: is told what is done, and which share of the budget is used.
    """

    evaluator: Evaluator
    space: TextSpace
    pictures: PictureSpace | None
    archive: Archive
    budget: Budget
    limit: float
    is_aim: Callable[[Target], bool]
    ends_at_first: bool
    seed: int
    factors: Factors
    report: Callable[[str, float], None]
    longest_pair: int = 1024
    """Tokens from one of a pair to the other, both included, at most."""
    exact: set[int] = field(default_factory=set)
    """Targets of which every token was tried, and which depend on nothing else."""
    positions: dict[str, int] = field(default_factory=dict)
    """By part, how many tokens of the vocabulary it is done with."""
    num_rounds: int = 0
    """Rounds of swaps so far."""
    part: str = ""
    _part_end: float = 1.0

    @property
    def share(self) -> float:
        """Of the budget that is used."""
        return self.budget.share(self.evaluator.work.num_tokens)

    @property
    def seconds_left(self) -> float:
        """Of the part that runs, by the share of the budget that it may use."""
        return (self._part_end - self.share) * self.budget.seconds

    def generator(self, name: str) -> torch.Generator:
        """Random numbers of a part, whatever other parts drew."""
        salt = sum(ord(letter) << (position % 24) for position, letter in enumerate(name))
        return torch.Generator().manual_seed((self.seed * 1_000_003 + salt) % (1 << 62))

    @contextmanager
    def within(self, name: str, *, share: float) -> Iterator[None]:
        """A part of the search that may use a share of the budget."""
        self.part, self._part_end = name, min(1.0, self.share + share)
        self.report(name, self.share)
        try:
            yield
        except PartOverError:
            return
        finally:
            self._part_end = 1.0

    def aims(self, *, of_images: bool = False) -> list[int]:
        """Numbers of the targets to make larger, the one with the least headroom first.

        One that exceeds the limit already comes last: there is nothing left to show.

        Args:
            of_images: also those that text alone does not reach.
        """
        left_out = frozenset() if of_images else self.evaluator.by_image
        best = self.archive.values(any_ids=not self.space.has_text)
        numbers = []
        for number, target in enumerate(self.evaluator.targets):
            best[number] = max(best[number], target.probes_abs_max)
            if self.is_aim(target) and number not in left_out:
                numbers.append(number)
        return sorted(numbers, key=lambda number: (best[number] > self.limit, -best[number]))

    def run_cores(self, cores: Iterable[Sequence[int]]) -> None:
        """Tries what users could write, with what the tokenizer puts around it."""
        self.run([self.space.wrapped(core) for core in cores])

    def run(self, inputs: Iterable[Ids]) -> None:
        """Tries token ids as they are, those of one length together.

        Raises:
            PartOverError: the part's share is used.
            SearchOverError: the whole budget is.
        """
        by_length: dict[int, list[Ids]] = {}
        longest = self.space.max_context
        for ids in inputs:
            if ids and (longest is None or len(ids) <= longest):
                by_length.setdefault(len(ids), []).append(ids)
        for rows in by_length.values():
            for batch in in_steps(rows, most_tokens=BATCH_TOKENS):
                self.check()
                wanted = self.worth_running(len(batch), None)
                self.add(batch, self.evaluator.values(batch, wanted=wanted))

    def worth_running(self, num_rows: int, wanted: Sequence[int] | None) -> Sequence[int] | None:
        """The targets of a forward without logits, where so many rows make them cost too much.

        A head costs more than all layers of a small model. Logits near the limit are kept.

        Args:
            num_rows: of the batch.
            wanted: numbers of targets; None: all that text reaches.
        """
        if num_rows * self.space.vocabulary.size <= MOST_LOGITS:
            return wanted
        targets = self.evaluator.targets
        numbers = (
            [n for n in range(len(targets)) if n not in self.evaluator.by_image]
            if wanted is None
            else wanted
        )
        cheap = [
            number
            for number in numbers
            if targets[number].mechanism is not Mechanism.LOGITS
            or targets[number].probes_abs_max * NEAR > self.limit
        ]
        return cheap or wanted

    def run_picture(self, picture: Picture) -> bool:
        """Tries a text about an image; says whether it made an operation larger than it was.

        Raises:
            PartOverError: the part's share is used.
            SearchOverError: the whole budget is, or what the search was to find is found.
        """
        self.check()
        batch = None if self.pictures is None else self.pictures.batch(picture)
        if batch is None:
            return False
        values = self.evaluator.values_of(batch).tolist()
        before = self.archive.values(any_ids=not self.space.has_text)
        ids = tuple(batch.input_ids[0].tolist())
        for number, value in enumerate(values):
            if value:
                catch = Catch(
                    value=value, ids=ids, text=QUESTION, found_by=self.part, picture=picture
                )
                self.archive.add(number, catch)
        larger = [number for number, value in enumerate(values) if value > before[number]]
        self._end_if_found(larger)
        return bool(larger)

    def affordable(self, num_tokens: int) -> list[int] | None:
        """Numbers of the first targets that so many tokens can reach in the time of this part.

        None: all of them.
        """
        generator = self.generator("affordable")
        rows = torch.randint(
            self.space.vocabulary.size, (BATCH_TOKENS // 8, 2), generator=generator
        )
        before = self.budget.spent
        self.evaluator.values(rows, wanted=self.worth_running(len(rows), None))
        needed = (self.budget.spent - before) * num_tokens / rows.numel()
        num_targets = len(self.evaluator.targets)
        if needed <= self.seconds_left:
            return None
        return list(range(max(1, int(num_targets * self.seconds_left / needed))))

    def run_single(
        self,
        tokens: Sequence[int],
        other: int,
        *,
        is_first: bool,
        wanted: Sequence[int] | None,
    ) -> None:
        """Tries texts of a token and another one, and keeps which lanes each makes large.

        Args:
            tokens: one for each text.
            other: the other one, which says nothing.
            is_first: the token comes before the other one.
            wanted: numbers of the targets to reach; None: all.
        """
        cores = [(token, other) if is_first else (other, token) for token in tokens]
        by_lane = self.factors.numbers(self.aims())
        if wanted is not None:
            by_lane = tuple(number for number in by_lane if number in wanted)
        start = 0
        for batch in in_steps([self.space.wrapped(c) for c in cores], most_tokens=BATCH_TOKENS):
            self.check()
            values, lanes = self.evaluator.lanes(
                batch, by_lane, wanted=self.worth_running(len(batch), wanted)
            )
            self.add(batch, values)
            self.factors.add(lanes, torch.tensor(tokens[start : start + len(batch)]))
            start += len(batch)

    def check(self) -> None:
        """Ends the part or the search where it is time to.

        Raises:
            PartOverError: the part's share is used.
            SearchOverError: the whole budget is.
        """
        share = self.share
        self.report(self.part, min(1.0, share))
        if share >= 1.0:
            raise SearchOverError
        if share >= self._part_end:
            raise PartOverError

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Keeps the best rows of a batch.

        Args:
            rows: token ids ``(rows, seq)``.
            values: ``(rows, targets)``, as the evaluator gives them.

        Raises:
            SearchOverError: what the search was to find is found.
        """
        values = self._resolved(rows, values)
        of_text = self.archive.least(is_text=True)
        of_ids = self.archive.least(is_text=False)
        largest = values.amax(dim=0)
        numbers = (largest > torch.minimum(of_text, of_ids)).nonzero().flatten().tolist()
        if not numbers:
            return
        best = values[:, numbers].topk(min(KEPT, len(rows)), dim=0)
        wanted = sorted(set(best.indices.flatten().tolist()))
        inputs = {row: tuple(rows[row].tolist()) for row in wanted}
        texts = dict(zip(wanted, self.space.texts_of(list(inputs.values())), strict=True))
        for column, number in enumerate(numbers):
            for value, row in zip(
                best.values[:, column].tolist(), best.indices[:, column].tolist(), strict=True
            ):
                least = of_ids if texts[row] is None else of_text
                if value > float(least[number]):
                    catch = Catch(value=value, ids=inputs[row], text=texts[row], found_by=self.part)
                    self.archive.add(number, catch)
        self._end_if_found(numbers)

    def _end_if_found(self, numbers: Sequence[int]) -> None:
        if not self.ends_at_first:
            return
        for number in numbers:
            best = self.archive.best(number, any_ids=not self.space.has_text)
            is_aim = self.is_aim(self.evaluator.targets[number])
            if is_aim and best is not None and best.value > self.limit:
                raise SearchOverError

    def _resolved(self, rows: Tensor, values: Tensor) -> Tensor:
        """The values with those of mixed targets at the row that has them, and 0 at the others."""
        mixed = self.evaluator.mixed
        if not mixed or len(rows) == 1:
            return values
        values = values.clone()
        best = self.archive.values(any_ids=True)
        for number in sorted(mixed):
            whole = float(values[0, number])
            values[:, number] = 0.0
            if whole > best[number] * 1.01 and self.is_aim(self.evaluator.targets[number]):
                row, value = self._row_of(rows, number)
                values[row, number] = value
        return values

    def _row_of(self, rows: Tensor, number: int) -> tuple[int, float]:
        """The row that makes a mixed target largest, by halves, and its value alone."""
        start, stop, value = 0, len(rows), 0.0
        while True:
            if stop - start == 1:
                return start, value or float(self.evaluator.values(rows[start:stop])[0, number])
            middle = (start + stop) // 2
            left = float(self.evaluator.values(rows[start:middle])[0, number])
            right = float(self.evaluator.values(rows[middle:stop])[0, number])
            start, stop = (start, middle) if left >= right else (middle, stop)
            value = max(left, right)
