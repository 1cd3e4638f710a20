"""The weight files of a repository that the cache lacks, opened where they are."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

from precheck.checkpoint.formats import SAFETENSORS
from precheck.checkpoint.remote.files import RemoteFiles
from precheck.errors import UnsupportedModelError
from precheck.records.progress import Announcement, Observer
from precheck.records.quantities import counted, num_bytes

if TYPE_CHECKING:
    from collections.abc import Collection

    from precheck.checkpoint.hub import Snapshot


def open_remote(
    snapshot: Snapshot, names: Collection[str], *, observe: Observer
) -> RemoteFiles | None:
    """The weight files that the cache lacks, their headers read; None if it has all of them.

    Args:
        snapshot: the repository at a commit; its index is in the cache, and checked.
        names: its weight files.
        observe: told what is read.

    Raises:
        CheckpointAccessError: the Hub cannot be reached, or does not send ranges.
        CheckpointCorruptError: a header is broken.
        UnsupportedModelError: files that cannot be read in part.
    """
    absent = snapshot.absent(names)
    if not absent:
        return None
    whole = next((name for name in absent if not name.endswith(".safetensors")), None)
    if whole is not None:
        raise UnsupportedModelError(
            f"cannot be read in part: {whole!r} of {snapshot.repo!r} (expected safetensors)",
            hint="it is downloaded without --stream, and with --full beside --static",
        )
    size = num_bytes(sum(snapshot.sizes[name] for name in absent))
    files = counted(len(absent), "weight file")
    where = f"{snapshot.repo} at {snapshot.commit[:12]}"
    observe(Announcement(text=f"reading the headers of {files} of {where}; {size} stay there"))
    return RemoteFiles(snapshot, absent, tensors=_tensors_by_file(snapshot), observe=observe)


def _tensors_by_file(snapshot: Snapshot) -> dict[str, list[str]]:
    """The names of the tensors in each weight file; empty where no index says so."""
    tensors: defaultdict[str, list[str]] = defaultdict(list)
    index = snapshot.folder / SAFETENSORS[1]
    if index.exists():
        for tensor, name in json.loads(index.read_bytes())["weight_map"].items():
            tensors[name].append(tensor)
    return tensors
