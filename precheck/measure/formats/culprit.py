"""What makes a part of a model lose accuracy in a format: its head, its channel, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.records.format_loss import Cause

if TYPE_CHECKING:
    from precheck.measure.formats.parts import PartStats

_CONSTANT = 0.9
"""Mean over root mean square of a channel in which every token has about the same number."""

_MOST = 0.5
"""Share of all squares in one position, such as the first, where attention has its sink."""

_FAR_LARGER = 4.0
"""Times the median of the others: a normal distribution of 1,000 numbers reaches 3.3 deviations,
and the largest of a channel differs from the median channel's by less than half of that."""


def worst_channel(stats: PartStats) -> tuple[int, int]:
    """Head and channel that lose most.

    The head is that with most clipped numbers, else with the largest error; of its channels the one
    with most clipped numbers, else the largest, which sets the scale of the others.
    """
    if bool(stats.clipped.any()):
        head = int(stats.clipped.sum(dim=1).argmax())
        return head, int(stats.clipped[head].argmax())
    head = int(stats.errors.sum(dim=1).argmax())
    return head, int(stats.largest[head].argmax())


def rounding_of(stats: PartStats) -> float:
    """What rounding changed over what varies: of the median channel, or the worst if that is more.

    A channel that is large by itself loses its own digits where steps are relative, and those of
    the others where it sets their scale.
    """
    head, channel = worst_channel(stats)
    lost = stats.lost[head]
    return max(float(lost.median()), float(lost[channel]))


def cause_of(stats: PartStats, *, head: int, channel: int, has_bias: bool) -> Cause | None:
    """Why a channel is large; None where it is not larger than the others.

    Args:
        stats: of the part.
        head: of the channel.
        channel: to explain.
        has_bias: what makes these numbers adds a bias.
    """
    mean = float(stats.total[head, channel]) / stats.count
    rms = (float(stats.squares[head, channel]) / stats.count) ** 0.5
    by_position = stats.squares_by_position
    if float(by_position.max()) > _MOST * float(by_position.sum()):
        return Cause.TOKEN
    if float(stats.largest[head, channel]) <= _FAR_LARGER * float(stats.largest[head].median()):
        return None
    if abs(mean) > _CONSTANT * rms:
        return Cause.BIAS if has_bias else Cause.CONSTANT
    return Cause.CHANNEL
