"""Real engines against the checkpoint that they serve: make engines.

One row for each way that llama.cpp serves SmolLM2-135M: what it was served as, what it is named,
and how far it is from each configuration. Another engine that runs already is named by its address.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from benchmarks.served.gguf_types import stored_as
from precheck.records.precision import Dtype
from precheck.records.quantities import nats
from precheck.served.request import VerifyRequest
from precheck.served.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

    from precheck.records.outcomes.served import Served

MODEL = "smollm2-135m"
GGUF = "SmolLM2-135M*.gguf"
"""What the checkpoint was decoded from, so that F32 has the same weights."""
WAYS = (
    ("F32", "f32", "on"),
    ("F32", "f32", "off"),
    ("F16", "f16", "on"),
    ("BF16", "bf16", "on"),
    ("Q8_0", "f16", "on"),
    ("Q4_1", "f16", "on"),
    ("F32", "q8_0", "on"),
)
"""Type of the weights, of the cache, and flash attention."""


@contextmanager
def llama_cpp(python: str, **settings: str) -> Iterator[str]:
    """The address of llama.cpp's server, while it runs."""
    command = [python, str(Path(__file__).with_name("llama_server.py")), json.dumps(settings)]
    with subprocess.Popen(  # noqa: S603  the interpreter that was named
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def row(name: str, served: Served) -> str:
    """One line of the table."""
    figures = ", ".join(
        f"{each.configuration} {nats(each.prefill or 0.0)} / {nats(each.decoded or 0.0)}"
        for each in served.distances
    )
    codes = " ".join(finding.code for finding in served.findings)
    return f"| {name} | {served.sentence} | {figures} | {codes} |"


def compared(url: str, model: str, *, num_tokens: int) -> Served:
    """The engine at an address against a checkpoint."""
    request = VerifyRequest(
        dtypes=tuple(Dtype),
        attn_implementations=("sdpa", "eager"),
        num_generated=num_tokens,
        seconds=600.0,
    )
    return verify(url, model, request=request, observe=lambda _: None)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of real models, see make real")
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter with xllamacpp")
    parser.add_argument("--url", action="append", default=[], help="an engine that serves it")
    parser.add_argument("--tokens", type=int, default=16)
    asked = parser.parse_args()
    model = str(asked.folder / MODEL)
    print("| served | named | KL of prompt / generated, nat | findings |\n|---|---|---|---|")
    for url in asked.url:
        print(row(url, compared(url, model, num_tokens=asked.tokens)), flush=True)
    if asked.llama is None:
        return
    with TemporaryDirectory() as folder:
        for kind, cache, flash in WAYS:
            file = Path(folder, f"{kind}.gguf")
            if not file.exists():
                stored_as(next(asked.folder.rglob(GGUF)), file, kind)
            settings = {"model": str(file), "cache": cache, "flash_attention": flash}
            with llama_cpp(asked.llama, **settings) as url:
                found = compared(url, model, num_tokens=asked.tokens)
            print(row(f"{kind}, cache {cache}, flash {flash}", found), flush=True)


if __name__ == "__main__":
    main()
