"""What makes two findings the same one: their code, where they are and the operation, no figure."""

from __future__ import annotations


def module_pattern(module: str) -> str:
    """The module in any layer.

    >>> module_pattern("model.layers.3.mlp.experts.0.up_proj")
    'model.layers.*.mlp.experts.*.up_proj'
    """
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
