"""Engines as servers of this machine, each while it is asked; one thread each."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

START_SECONDS = 600.0
"""vLLM imports for a minute in each of its processes."""


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


@contextmanager
def vllm(python: str, model: str, *, dtype: str, cache: str) -> Iterator[str]:
    """The address of vLLM's server, while it runs."""
    # the command `vllm serve` asks for a package of the name vllm
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    command += ["--dtype", dtype, "--kv-cache-dtype", cache, "--max-model-len", "512"]
    command += ["--enforce-eager"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with _listening(command, settings) as url:
        yield url


@contextmanager
def transformers_serve(python: str, model: str, *, dtype: str, attention: str) -> Iterator[str]:
    """The address of ``transformers serve``, while it runs."""
    command = [str(Path(python).with_name("transformers")), "serve", model]
    command += ["--dtype", dtype, "--attn-implementation", attention, "--device", "cpu"]
    with _listening(command, {}) as url:
        yield url


@contextmanager
def _listening(command: Sequence[str], settings: dict[str, str]) -> Iterator[str]:
    """The address of a command that is told one, from when it answers until it is ended.

    Raises:
        RuntimeError: it ended, or did not answer in time; with its last error.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with (
        TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603  the interpreter that was named
            [*command, "--host", "127.0.0.1", "--port", port],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | settings,
        ) as process,
    ):
        try:
            if not _answers(process, f"{url}/health"):
                log.seek(0)
                words = [line for line in log.read().splitlines() if "Error" in line]
                raise RuntimeError(words[-1].strip() if words else "it says nothing")
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # an engine has processes of its own


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Whether a server comes to answer; it does not where its process ends."""
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(url, timeout=10):  # noqa: S310  loopback
            return True
        time.sleep(1)
    return False
