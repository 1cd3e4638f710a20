"""llama.cpp's own server for one model: ``LLAMA_PYTHON llama_server.py SETTINGS``.

Run by an interpreter with the wheel ``xllamacpp`` (2026.10.11549 was tried). Prints its address and
serves until it is ended. ``SETTINGS`` is JSON: ``model`` (a GGUF file), ``cache`` (``f16``,
``q8_0``), ``flash_attention`` (``on``, ``off``).
"""

from __future__ import annotations

import json
import sys
import time

import xllamacpp


def main(settings: str) -> None:
    """Serves until the process is ended."""
    asked = json.loads(settings)
    params = xllamacpp.CommonParams()
    params.model.path = asked["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = 2048
    params.n_parallel = 2
    params.warmup = False
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    cache = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{asked.get('cache', 'f16').upper()}")
    params.cache_type_k = params.cache_type_v = cache
    kinds = xllamacpp.llama_flash_attn_type
    is_on = asked.get("flash_attention", "on") == "on"
    params.flash_attn_type = (
        kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if is_on else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
