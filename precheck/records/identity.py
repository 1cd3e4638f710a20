"""What makes two findings the same one: their code, where they are and the operation, no figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from precheck.records.finding import Finding


def identity(finding: Finding) -> tuple[str, str, str]:
    """Code, module in any layer, and operation; empty where it has none."""
    pattern = "" if finding.module is None else module_pattern(finding.module)
    return (finding.code, pattern, finding.op or "")


def module_pattern(module: str) -> str:
    """The module in any layer.

    >>> module_pattern("model.layers.3.mlp.experts.0.up_proj")
    'model.layers.*.mlp.experts.*.up_proj'
    """
    return ".".join("*" if part.isdigit() else part for part in module.split("."))
