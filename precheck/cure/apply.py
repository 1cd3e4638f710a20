"""``precheck.apply``: keeps the modules of a recipe in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from precheck.checkpoint.torch_dtypes import dtype_name
from precheck.cure.float32_modules import keep_in_float32
from precheck.errors import UsageError
from precheck.measure.models.model_dtypes import main_dtype
from precheck.records.outcomes.fix import Float32Recipe
from precheck.saved import read_json

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def apply(model: nn.Module, recipe: Float32Recipe | str | Path) -> nn.Module:
    """Keeps the modules of a recipe in float32, and returns the model.

    Args:
        model: loaded in the recipe's dtype; it is changed, and hooks stay on it.
        recipe: for this model, or the file that ``precheck fix`` wrote.

    Raises:
        ReportError: the file is not a recipe.
        UsageError: the model has no such module, or is of another dtype.

    Example:
        ``model = precheck.apply(model, "fixed/precheck-recipe.json")``
    """
    if not isinstance(recipe, Float32Recipe):
        recipe = Float32Recipe.from_dict(read_json(recipe, what="recipe"))
    dtype = dtype_name(main_dtype(model))
    if dtype != recipe.dtype:
        raise UsageError(
            f"the model is in {dtype} (expected {recipe.dtype}, as in the recipe)",
            hint=f"load it with dtype=torch.{recipe.dtype}",
        )
    keep_in_float32(model, recipe.modules)
    return model
