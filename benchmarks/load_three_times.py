"""What people do without precheck: load the model once for each dtype, with hooks on its layers.

Prints a line for each dtype: the largest activation, how many elements are not finite, and how far
the logits are from the float32 ones; then the seconds since the process began, as JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers

BEGAN = psutil.Process().create_time()


def main(folder: str, prompts: str) -> None:
    """One dtype after the other; only the float32 logits are kept."""
    line = Path(prompts).read_text(encoding="utf-8").splitlines()[0]
    token_ids = torch.tensor([json.loads(line)["token_ids"]])
    reference: torch.Tensor | None = None
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        ).eval()
        found: list[tuple[float, int]] = []

        def look(
            _module: Any, _args: Any, output: Any, found: list[tuple[float, int]] = found
        ) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            finite = hidden.isfinite()
            found.append((float(hidden[finite].abs().max()), int((~finite).sum())))

        for layer in model.model.layers:
            layer.register_forward_hook(look)
        with torch.no_grad():
            logits = model(token_ids, use_cache=False).logits[0].float()
        reference = logits if reference is None else reference
        kl = torch.nn.functional.kl_div(
            logits.log_softmax(-1), reference.log_softmax(-1), log_target=True, reduction="none"
        ).sum(-1)
        same = (logits.argmax(-1) == reference.argmax(-1)).float().mean()
        print(
            f"{dtype}: {max(each for each, _ in found):.1f}, {sum(bad for _, bad in found)} "
            f"not finite, KL {float(kl.mean()):.2e}, top-1 {float(same):.1%}"
        )
        del model, logits
        gc.collect()
    print(json.dumps({"seconds": time.time() - BEGAN}))


if __name__ == "__main__":
    main(*sys.argv[1:])
