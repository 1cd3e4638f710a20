"""An engine asked in a process of its own, by its own interpreter."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

Likely = dict[str, float]
"""Log-probabilities of one position by token id."""


class EngineError(Exception):
    """The engine does not answer; with its last error."""


def answer_of(python: str, script: str, **asked: object) -> list[list[Likely]]:
    """The likeliest tokens of every text's positions.

    Args:
        python: interpreter that has the engine.
        script: of this folder, which takes a request and writes its answer.
        asked: the request.

    Raises:
        EngineError: it fails.
    """
    with TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.json"), Path(folder, "answer.json")
        request.write_text(json.dumps(asked | {"answer": str(answer)}), encoding="utf-8")
        command = [python, str(Path(__file__).with_name(script)), str(request)]
        ran = subprocess.run(command, capture_output=True, check=False, text=True)  # noqa: S603
        if ran.returncode:
            errors = [line for line in ran.stderr.splitlines() if "Error" in line]
            raise EngineError(errors[-1].strip() if errors else ran.stderr[-500:])
        found: list[list[Likely]] = json.loads(answer.read_text(encoding="utf-8"))
        return found
