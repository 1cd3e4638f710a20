"""What a folder contains: which files hold the weights, or which other format it is."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from precheck.errors import (
    CheckpointAccessError,
    CheckpointCorruptError,
    CheckpointError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

GGUF = ".gguf"
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
"""The single file and the index, in the order transformers looks for them.

**Source**: ``SAFE_WEIGHTS_NAME`` ... in
https://github.com/huggingface/transformers/blob/main/src/transformers/utils/__init__.py
"""

_SAFE, _INDEX = ".safetensors", ".index.json"

_SHOWN = 3
"""Names listed in a message before the rest is only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignFormat:
    """A format that transformers does not load as a model, recognised by its files."""

    name: str
    patterns: tuple[str, ...]
    hint: str
    """What to do; ``{detail}`` stands for what the file says that it was recognised by."""
    detail: Callable[[Mapping[str, Any], Collection[str]], str] = lambda *_: ""
    """In words, from that file's content and the names of all files; empty if it tells nothing."""
    beside_weights: bool = False
    """Refused even if the folder also has weights for transformers."""


_ORIGINAL = "scan the checkpoint it was made from: the folder or Hub id with model.safetensors"
_CONVERT = "convert it to safetensors with its conversion script in transformers, then scan that"


def _base_model(adapter: Mapping[str, Any], _names: Collection[str]) -> str:
    base = adapter.get("base_model_name_or_path")
    return f" {base!r}" if isinstance(base, str) and base else ""


def _transformers_models(pipeline: Mapping[str, Any], names: Collection[str]) -> str:
    folders = [
        part
        for part, made_by in pipeline.items()
        if isinstance(made_by, list) and made_by[:1] == ["transformers"]
        if f"{part}/config.json" in names
    ]
    return f": the folder {' or '.join(map(repr, folders))} in it" if folders else ""


def _gguf_files(_: Mapping[str, Any], names: Collection[str]) -> str:
    return f": {_listed([name for name in names if name.endswith(GGUF)])}"


FOREIGN_FORMATS = (
    ForeignFormat(
        name="PEFT adapter",
        patterns=("adapter_config.json",),
        hint="scan its base model{detail}, or merge it first: "
        "PeftModel.from_pretrained(BASE, ADAPTER).merge_and_unload().save_pretrained(DIR)",
        detail=_base_model,
        beside_weights=True,
    ),
    ForeignFormat(
        name="diffusers pipeline",
        patterns=("model_index.json",),
        hint="scan one of its transformers models{detail}",
        detail=_transformers_models,
        beside_weights=True,
    ),
    ForeignFormat(
        name="GGUF",
        patterns=("*.gguf",),
        hint="name one of its files, REPOSITORY:FILE.gguf or DIR/FILE.gguf{detail}",
        detail=_gguf_files,
    ),
    ForeignFormat(name="GGML", patterns=("ggml*.bin", "*.ggml"), hint=_ORIGINAL),
    ForeignFormat(name="ONNX", patterns=("*.onnx", "*/*.onnx"), hint=_ORIGINAL),
    ForeignFormat(name="OpenVINO", patterns=("openvino_*.xml", "*/openvino_*.xml"), hint=_ORIGINAL),
    ForeignFormat(name="TensorRT engine", patterns=("*.engine", "*.plan"), hint=_ORIGINAL),
    ForeignFormat(
        name="Core ML", patterns=("*.mlmodel", "*.mlpackage", "*.mlpackage/*"), hint=_ORIGINAL
    ),
    ForeignFormat(name="CTranslate2", patterns=("model.bin",), hint=_ORIGINAL),
    ForeignFormat(name="MLX arrays", patterns=("weights*.npz",), hint=_ORIGINAL),
    ForeignFormat(
        name="TensorFlow", patterns=("tf_model*.h5", "*.h5", "saved_model.pb"), hint=_CONVERT
    ),
    ForeignFormat(name="Flax", patterns=("flax_model*.msgpack", "*.msgpack"), hint=_CONVERT),
    ForeignFormat(name="NeMo", patterns=("*.nemo",), hint=_CONVERT),
    ForeignFormat(
        name="original Llama or Mistral release",
        patterns=("consolidated*.pth", "consolidated*.safetensors"),
        hint="scan the transformers version of it: the folder or Hub id with model.safetensors",
    ),
    ForeignFormat(
        name="DeepSpeed or FSDP training state",
        patterns=("zero_to_fp32.py", "global_step*/*", "*.distcp", "*/*.distcp"),
        hint="gather it first (DeepSpeed: python zero_to_fp32.py . . --safe_serialization), "
        "then scan that",
    ),
)
"""Tried in this order; the first that matches is named."""


def refuse_foreign_format(
    names: Collection[str], read: Callable[[str], Mapping[str, Any]], *, where: str
) -> None:
    """Refuses a folder whose files belong to another format than a transformers checkpoint.

    Args:
        names: the files, relative to the folder, with ``/``.
        read: gives the content of one that is JSON; may raise ``CheckpointError``.
        where: the name of the folder in messages.

    Raises:
        UnsupportedModelError: names the format and the file that it was recognised by.
    """
    has_weights = any(name in names for name in SAFETENSORS + PICKLES)
    for foreign in FOREIGN_FORMATS:
        match = _first_match(names, patterns=foreign.patterns)
        if match is not None and (foreign.beside_weights or not has_weights):
            raise UnsupportedModelError(
                f"{foreign.name}, not a transformers checkpoint: {where!r} has {match!r}",
                hint=foreign.hint.format(detail=_detail(foreign, match, names, read)),
            )


def is_foreign(name: str) -> bool:
    """Whether a file beside a transformers checkpoint holds its weights in another format.

    >>> is_foreign("onnx/model.onnx"), is_foreign("tokenizer.model")
    (True, False)
    """
    return any(
        _first_match([name], patterns=foreign.patterns)
        for foreign in FOREIGN_FORMATS
        if not foreign.beside_weights
    )


def _detail(
    foreign: ForeignFormat,
    match: str,
    names: Collection[str],
    read: Callable[[str], Mapping[str, Any]],
) -> str:
    try:
        return foreign.detail(read(match) if match.endswith(".json") else {}, names)
    except CheckpointError:  # it is refused all the same
        return ""


def _first_match(names: Collection[str], *, patterns: tuple[str, ...]) -> str | None:
    return next(
        (
            name
            for pattern in patterns
            for name in sorted(names)
            # fnmatch's star crosses folders, a shell's does not.
            if fnmatch(name, pattern) and name.count("/") == pattern.count("/")
        ),
        None,
    )


def find_weight_files(
    config: Mapping[str, Any],
    *,
    names: Collection[str],
    read_index: Callable[[str], Mapping[str, Any]],
    allow_pickle: bool,
    where: str,
) -> tuple[str, ...]:
    """The files that ``from_pretrained`` would read the weights from, relative to the folder.

    Args:
        config: the content of ``config.json``.
        names: the files of the folder.
        read_index: gives the content of an index file.
        allow_pickle: whether ``pytorch_model.bin`` may be used if there is no safetensors file.
        where: the name of the folder in messages.

    Raises:
        CheckpointAccessError: no weights, or shards that the index names do not exist.
        CheckpointCorruptError: an index without a weight map, or one that leaves the folder.
        UnsupportedModelError: pickle files, without ``allow_pickle``.
    """
    weights = _find_weights(config, names=names, where=where)
    check_pickles([weights.removesuffix(_INDEX)], allowed=allow_pickle, where=where)
    if not weights.endswith(_INDEX):
        return (weights,)
    shards = _shards(read_index(weights), index_name=weights, where=where)
    missing = [shard for shard in shards if shard not in names]
    if missing:
        raise CheckpointAccessError(
            f"{len(missing)} of {len(shards)} shards that {weights!r} names are missing "
            f"in {where!r}: {_listed(missing)}",
            hint="download or copy these files into the folder",
        )
    return shards


def check_pickles(names: Iterable[str], *, allowed: bool, where: str) -> None:
    """The gate before every file of weights: what is neither safetensors nor GGUF is a pickle.

    Raises:
        UnsupportedModelError: one is not, and pickles are not allowed.
    """
    pickled = next((name for name in names if not name.endswith((_SAFE, GGUF))), None)
    if pickled is not None and not allowed:
        raise UnsupportedModelError(
            f"weights as pickle, which can execute code when loaded: {pickled!r} in {where!r} "
            "(expected safetensors)",
            hint="if you trust its source: --allow-pickle; otherwise look for a "
            "revision with model.safetensors",
        )


def _find_weights(config: Mapping[str, Any], *, names: Collection[str], where: str) -> str:
    explicit = config.get("transformers_weights")
    candidates = (explicit,) if isinstance(explicit, str) else SAFETENSORS + PICKLES
    weights = next((name for name in candidates if name in names and _is_inside(name)), None)
    if weights is None:
        expected = candidates[: len(SAFETENSORS)]
        raise CheckpointAccessError(
            f"no weights in {where!r} (expected {' or '.join(map(repr, expected))})",
            hint=_what_lies_there(names),
        )
    return weights


def _what_lies_there(names: Collection[str]) -> str:
    stray = sorted(name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth")))
    if stray:
        return f"found {_listed(stray)}, but no index that lists their tensors"
    return "save_pretrained(DIR) writes config.json and model.safetensors; scan that DIR"


def _shards(index: Mapping[str, Any], *, index_name: str, where: str) -> tuple[str, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointCorruptError(
            f"no 'weight_map' in {index_name!r} of {where!r}", hint="download the index again"
        )
    suffix = _SAFE if index_name.endswith(f"{_SAFE}{_INDEX}") else ".bin"
    for shard in weight_map.values():
        if not (isinstance(shard, str) and shard.endswith(suffix) and _is_inside(shard)):
            raise CheckpointCorruptError(
                f"{index_name!r} of {where!r} names {shard!r} "
                f"(expected a {suffix} file inside the folder)",
                hint="do not use this checkpoint unless you know why it refers to another file",
            )
    return tuple(sorted(set(weight_map.values())))


def _is_inside(name: str) -> bool:
    # Lexically: files of a Hub cache are links that lead out of the folder by right.
    windows = PureWindowsPath(name)
    return not windows.anchor and ".." not in windows.parts and not PurePosixPath(name).anchor


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(repr(name) for name in sorted(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
