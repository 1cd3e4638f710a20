"""What the verdict of precision rests on: texts as users write them, each with its own mean."""

from __future__ import annotations

import pytest
import torch

from precheck.measure.lockstep.figures.text_divergence import TextDivergence
from precheck.records.traces import LONG_TEXT_TOKENS, ODD_START, Probe

LOW, HIGH = 1e-3, 0.5


def probe(
    name: str,
    *,
    kind: str = "text",
    num_tokens: int = 48,
    is_ordinary: bool = True,
    is_own: bool = False,
) -> Probe:
    return Probe(
        name=name, kind=kind, num_tokens=num_tokens, is_ordinary=is_ordinary, is_own=is_own
    )


def divergence(*texts: tuple[Probe, float | torch.Tensor]) -> TextDivergence:
    of_texts = TextDivergence()
    for text, kl in texts:
        values = kl if isinstance(kl, torch.Tensor) else torch.full((text.num_tokens,), kl)
        of_texts.add(text, values.double())
    return of_texts


ORDINARY = tuple((probe(f"text_{index}"), LOW) for index in range(5))
ODD = (probe("repeated", is_ordinary=False), HIGH)


def test_odd_texts_are_listed_and_do_not_decide() -> None:
    found = divergence(*ORDINARY, ODD)
    assert found.means["repeated"] == pytest.approx(HIGH)
    assert found.verdict == pytest.approx(LOW)


def test_one_token_does_not_decide_however_wrong_it_is() -> None:
    spike = torch.full((48,), LOW)
    spike[7] = 8.0
    found = divergence((probe("alone"), spike))
    assert found.means["alone"] == pytest.approx(8.0 / 48 + LOW, rel=0.1)
    assert found.verdict == pytest.approx(LOW)


def test_a_prompt_of_the_user_is_not_outvoted_by_others() -> None:
    own = tuple((probe(f"prompt_{n}", is_ordinary=False, is_own=True), LOW) for n in range(3))
    broken = probe("prompt_4", is_ordinary=False, is_own=True)
    assert divergence(*own).verdict == pytest.approx(LOW)
    assert divergence(*own, (broken, HIGH)).verdict == pytest.approx(HIGH)


def test_odd_first_tokens_say_nothing_of_accuracy() -> None:
    odd = probe("first_7", kind=ODD_START, num_tokens=2, is_ordinary=False)
    ids = probe("ids", kind="token_ids", is_ordinary=False)
    assert divergence((ids, LOW), (odd, HIGH)).verdict == pytest.approx(LOW)
    assert divergence((odd, HIGH)).verdict is None


def test_damage_to_all_ordinary_texts_decides() -> None:
    assert divergence(*((text, HIGH) for text, _ in ORDINARY)).verdict == pytest.approx(HIGH)


@pytest.mark.parametrize(
    "damaged",
    [
        probe("prompt_1", is_ordinary=False, is_own=True),
        probe("prompt_1", kind="token_ids", is_ordinary=False, is_own=True),
        probe("padded_7", kind="padded"),
        probe("image_448x224", kind="image"),
        probe("sound_voice", kind="sound"),
    ],
)
def test_a_kind_that_breaks_alone_is_not_outvoted_by_texts(damaged: Probe) -> None:
    assert divergence(*ORDINARY, (damaged, HIGH)).verdict == pytest.approx(HIGH)


def test_what_is_lost_with_the_distance_decides() -> None:
    context = probe("context", num_tokens=2 * LONG_TEXT_TOKENS)
    far = torch.full((context.num_tokens,), LOW)
    assert divergence(*ORDINARY, (context, far)).verdict == pytest.approx(LOW)
    far[LONG_TEXT_TOKENS // 2 :] = HIGH
    assert divergence(*ORDINARY, (context, far)).verdict == pytest.approx(HIGH)


def test_without_ordinary_texts_all_probes_count() -> None:
    ids = tuple((probe(f"ids_{n}", kind="token_ids", is_ordinary=False), HIGH) for n in range(3))
    assert divergence(*ids).verdict == pytest.approx(HIGH)
    assert TextDivergence().verdict is None


def test_a_text_without_a_finite_token_is_listed_without_a_figure() -> None:
    found = divergence(*ORDINARY, (probe("broken"), torch.full((48,), torch.nan)))
    assert found.means["broken"] is None
    assert found.verdict == pytest.approx(LOW)


def test_parts_of_a_text_and_of_a_scan_add_up() -> None:
    parts = TextDivergence()
    for half in (torch.full((24,), LOW), torch.full((24,), HIGH)):
        parts.add(probe("text"), half.double())
    assert parts.means["text"] == pytest.approx((LOW + HIGH) / 2)
    both = parts.merge(divergence(*ORDINARY))
    assert set(both.means) == {"text", *(text.name for text, _ in ORDINARY)}


@pytest.mark.parametrize(
    ("num_tokens", "damaged", "is_lost"),
    [
        (2048, slice(1536, None), True),
        (2048, slice(1024, None), True),
        (8192, slice(6144, None), True),
        (2048, slice(1792, None), False),
        (2048, slice(768, 896), False),
        (520, slice(512, None), False),
        (1100, slice(1024, None), False),
    ],
)
def test_the_end_of_a_long_text_counts_as_much_as_its_beginning(
    num_tokens: int, damaged: slice, is_lost: bool
) -> None:
    kl = torch.full((num_tokens,), LOW)
    kl[damaged] = HIGH
    found = divergence(*ORDINARY, (probe("context", num_tokens=num_tokens), kl))
    assert found.verdict is not None
    assert (found.verdict > 10 * LOW) is is_lost
