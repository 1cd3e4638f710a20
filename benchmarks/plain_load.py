"""What a plain load takes until a forward can begin: ``python benchmarks/plain_load.py MODEL``."""

from __future__ import annotations

import json
import sys
import time

import psutil

BEGAN = psutil.Process().create_time()


def main(folder: str) -> None:
    """Prints seconds since the process began: with the imports done, and with the model loaded."""
    import torch  # noqa: PLC0415  its time is told
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415

    # a model's own code is imported when its class is looked up
    config = AutoConfig.from_pretrained(folder)
    of_model = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001
    assert of_model.from_pretrained  # noqa: S101
    found = {"imports": time.time() - BEGAN}
    AutoTokenizer.from_pretrained(folder)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found["first forward"] = time.time() - BEGAN
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
