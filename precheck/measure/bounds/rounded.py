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
    from collections.abc import Callable

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


def _form(form: Form, bound: Tensor, lost: Callable[[Tensor], Tensor], relative: float) -> Form:
    if isinstance(form, Image):
        return _image(form, lost, relative)
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


def _image(image: Image, lost: Callable[[Tensor], Tensor], relative: float) -> Image:
    """Elements of the vector itself keep a relative error, so that the vector becomes longer.

    As errors of the elements they would count with the sum of magnitudes in every product that
    follows, which is up to ``sqrt(d)`` times more.
    """
    rows = image.rows
    if rows.matrix is not None:
        return replace(image, error=image.error + lost(image.bound))
    longer = replace(
        rows,
        radius=rows.radius * (1 + relative) * OUTWARD,
        rounding=(rows.rounding + relative) * (1 + relative),
        ball=object(),
    )
    return replace(image, rows=longer, error=image.error + lost(image.offset.abs() + image.error))
