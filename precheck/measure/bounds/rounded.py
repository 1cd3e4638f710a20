"""What rounding a result adds to what is known of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from precheck.measure.bounds.forms import (
    Below,
    Image,
    Known,
    Pair,
    Rotated,
    Turned,
    Wave,
)
from precheck.measure.bounds.rounding import OUTWARD, half_subnormal, unit_roundoff

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from precheck.measure.bounds.forms import Form


def rounded(known: Known, *, dtype: torch.dtype, times: int) -> Known:
    """The same after its elements were rounded to a dtype.

    Args:
        known: of the exact result.
        dtype: of the stored one.
        times: units of roundoff that it may err by; 0 for what is exact.
    """
    if not times:
        return known
    relative, absolute = times * unit_roundoff(dtype), times * half_subnormal(dtype)

    def lost(bound: Tensor) -> Tensor:
        return (relative * bound + absolute) * OUTWARD

    return replace(
        known,
        magnitudes=known.bound + lost(known.bound),
        form=None if known.form is None else _form(known.form, known.bound, lost, relative),
    )


def _form(form: Form, bound: Tensor, lost: object, relative: float) -> Form:
    assert callable(lost)  # noqa: S101  the function above
    if isinstance(form, Image):
        return replace(form, error=form.error + lost(form.bound))
    if isinstance(form, Below):
        image = form.image.times(1 + relative)
        return Below(image=replace(image, error=image.error + lost(0 * bound)))
    if isinstance(form, Pair | Rotated):
        return replace(form, error=form.error + lost(bound))
    if isinstance(form, Turned):
        image = form.image
        return replace(form, image=replace(image, error=image.error + lost(image.bound)))
    if isinstance(form, Wave):
        return replace(form, factor=form.factor * (1 + 8 * relative))
    return form
