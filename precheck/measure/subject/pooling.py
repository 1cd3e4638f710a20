"""What a sentence-transformers folder does after the encoder, read from its small files."""

from __future__ import annotations

import json
from pathlib import Path

from precheck.records.answers import Embedding, Pooling

_MODES = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_mean_sqrt_len_tokens": Pooling.MEAN,
    "pooling_mode_max_tokens": Pooling.MAX,
    "pooling_mode_lasttoken": Pooling.LAST,
    "pooling_mode_weightedmean_tokens": Pooling.MEAN,
}
"""By the key that is true in the config of a ``Pooling`` module; a weighted mean counts as one.

**Source**: https://github.com/UKPLab/sentence-transformers, models/Pooling.py
"""


def read_embedding(folder: Path) -> Embedding:
    """How the folder pools and whether it normalises; the mean where it does not say."""
    modules = _json(folder / "modules.json")
    if not isinstance(modules, list):
        return Embedding()
    types = [
        (str(module.get("type", "")).rpartition(".")[2], str(module.get("path", "")))
        for module in modules
        if isinstance(module, dict)
    ]
    is_normalised = any(name == "Normalize" for name, _ in types)
    path = next((path for name, path in types if name == "Pooling"), None)
    is_inside = path is not None and not Path(path).is_absolute() and ".." not in Path(path).parts
    config = _json(folder / path / "config.json") if path is not None and is_inside else None
    if not isinstance(config, dict):
        return Embedding(is_normalised=is_normalised)
    mode = next((mode for key, mode in _MODES.items() if config.get(key) is True), None)
    named = {each.value: each for each in Pooling}.get(str(config.get("pooling_mode")))
    return Embedding(
        pooling=mode or named or Pooling.MEAN,
        is_normalised=is_normalised,
    )


def _json(path: Path) -> object:
    """What a file holds; None where it is absent or no JSON."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content
