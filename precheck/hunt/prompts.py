"""The prompts that were found, as a scan takes them and as a file holds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from precheck.measure.hunt.pictures import drawn
from precheck.records.prompts import ImagePrompt

if TYPE_CHECKING:
    from precheck.records.outcomes.hunt import Hunt, WorstPrompt
    from precheck.records.prompts import Prompt


def saved_prompts(found: Hunt, file: Path) -> list[Prompt]:
    """The prompts as a scan takes them; images are written beside a file.

    Args:
        found: the search.
        file: ``worst.jsonl``, beside which ``worst-1.png`` is that of the first prompt.

    Raises:
        OSError: an image cannot be written.
    """
    return [_saved(prompt, n, file) for n, prompt in enumerate(found.prompts, start=1)]


def _saved(prompt: WorstPrompt, number: int, file: Path) -> Prompt:
    if prompt.text is None:
        return prompt.token_ids
    if prompt.picture is None:
        return prompt.text
    image = file.with_name(f"{file.stem}-{number}.png")
    drawn(prompt.picture).save(image)
    return ImagePrompt(text=prompt.text, images=(str(image),))


def json_lines(prompts: list[Prompt]) -> str:
    """The prompts as ``scan --prompts`` reads them; paths of images are relative to the file."""
    return "".join(f"{json.dumps(_plain(prompt), ensure_ascii=False)}\n" for prompt in prompts)


def _plain(prompt: Prompt) -> dict[str, object]:
    match prompt:
        case str():
            return {"text": prompt}
        case ImagePrompt():
            return {"text": prompt.text, "images": [Path(path).name for path in prompt.images]}
        case _:
            return {"token_ids": list(prompt)}
