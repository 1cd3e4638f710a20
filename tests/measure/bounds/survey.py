"""Every architecture that transformers can build small, its bounds tried: ``make bounds``."""

from __future__ import annotations

import argparse
import copy
import sys
from typing import Any

import torch

from precheck.errors import UntraceableError, first_line
from precheck.measure.bounds.lengths import TracedForward, trace_any_length
from precheck.measure.models.attention import attention_of
from tests.measure.bounds.breaking import Tried, enlarged, skeleton_of, texts, try_model
from tests.zoo.build import Kind, NotBuiltError, build, kinds

FACTORS = (0.0, 4.0)
"""Powers of two that parameters are multiplied by, at most."""


def tried_of(kind: Kind, *, num_texts: int) -> list[tuple[str, Tried]]:
    """The values of one architecture with each attention and each size of its parameters."""
    model = build(kind)
    rows = []
    for attn in dict.fromkeys((attention_of(model), "eager")):
        traced: TracedForward | None = None
        for seed, factor in enumerate(FACTORS):
            own: Any = copy.deepcopy(model)
            own.set_attn_implementation(attn)
            enlarged(own, factor=factor, seed=seed)
            skeleton = skeleton_of(own.to(torch.float16), attn=attn)
            traced = traced or trace_any_length(skeleton)
            tried = try_model(skeleton, texts(skeleton, num=num_texts, seed=seed), traced)
            rows.append((f"{attn} {factor:g}", tried))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a class name")
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--most", type=int, default=10_000)
    arguments = parser.parse_args()
    num_elements = num_models = num_broken = 0
    for kind in kinds():
        names = arguments.only.split(",")
        if not any(name in kind.class_name for name in names) or num_models >= arguments.most:
            continue
        try:
            rows = tried_of(kind, num_texts=arguments.texts)
        except (NotBuiltError, UntraceableError) as error:
            print(f"{kind.class_name}: {first_line(error)}")  # noqa: T201
            continue
        except Exception as error:  # noqa: BLE001  the next one may work
            print(f"{kind.class_name}: FAILED {type(error).__name__}: {first_line(error)}")  # noqa: T201
            continue
        num_models += 1
        for name, tried in rows:
            num_elements += tried.num_elements
            num_broken += len(tried.broken)
            line = f"{tried.num_proved} of {tried.num_operations} proved"
            print(f"{kind.class_name} {name}: {line}, {tried.num_elements} values", flush=True)  # noqa: T201
            for broken in tried.broken[:5]:
                print(f"    BROKEN {broken}")  # noqa: T201
    print(f"{num_models} architectures, {num_elements} values, {num_broken} above their bound")  # noqa: T201
    return 1 if num_broken else 0


if __name__ == "__main__":
    sys.exit(main())
