"""Checkpoints made to hurt: bounded in time and memory, and nothing outside is touched."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from safetensors.torch import load_file

from precheck.checkpoint.weights import Weights
from precheck.errors import ExitCode
from precheck.records.finding import Verdict
from tests.shell import change_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.shell import Shell

MOST_MEMORY = 2 << 30
"""Bytes that a hostile checkpoint of half a megabyte may cost; 100 MB of header cost most."""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 2**40}, "describes a model of more than"),
        ({"vocab_size": 2**45}, "describes a model of more than"),
        ({"intermediate_size": 2**36}, "describes a model of more than"),
        ({"hidden_size": 2**15, "intermediate_size": 2**17}, "describes a model of more than"),
        ({"num_attention_heads": 2**40}, "describes a model of more than"),
        ({"num_hidden_layers": 10**9, "layer_types": None}, "num_hidden_layers is 1000000000"),
        ({"num_hidden_layers": 1e300, "layer_types": None}, "num_hidden_layers is 1e+300"),
    ],
)
@pytest.mark.parametrize("how", ["--quick", "--static"])
def test_a_config_that_asks_for_terabytes(
    shell: Shell, model: Path, changes: dict[str, Any], says: str, how: str
) -> None:
    change_config(model, **changes)
    before = psutil.Process().memory_info().rss
    shell.refuses("model", how, code=ExitCode.INCOMPLETE, says=says, hint="compare")
    assert psutil.Process().memory_info().rss - before < MOST_MEMORY


def change_header(model: Path, change: Callable[[bytes], bytes]) -> None:
    file = model / "model.safetensors"
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = change(content[8 : 8 + length])
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])


def test_a_header_of_99_megabytes_is_read(shell: Shell, model: Path) -> None:
    def longer(header: bytes) -> bytes:
        return json.dumps(
            {**json.loads(header), "__metadata__": {"format": "pt", "x": "a" * 99_000_000}}
        ).encode()

    change_header(model, longer)
    before = psutil.Process().memory_info().rss
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}
    assert psutil.Process().memory_info().rss - before < MOST_MEMORY


def test_a_header_of_more_than_100_megabytes_is_refused(shell: Shell, model: Path) -> None:
    """So does safetensors."""
    change_header(model, lambda header: header + b" " * 100_000_000)
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="model.safetensors", hint="download")


def test_a_name_that_stands_twice_is_read_as_safetensors_reads_it(model: Path) -> None:
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"

    def twice(header: bytes) -> bytes:
        entry = json.dumps(json.loads(header)[other])
        return header.rstrip()[:-1] + f', "{name}": {entry}}}'.encode()

    file = model / "model.safetensors"
    change_header(model, twice)
    try:
        expected = load_file(file)[name]
    except Exception:  # noqa: BLE001  a safetensors that refuses is as good
        return
    with Weights([file]) as weights:
        buffer = expected.new_empty(weights.nbytes(name)).byte()
        assert bool((weights.read_into(name, buffer) == expected).all())


INDEX = "model.safetensors.index.json"


def write_index(model: Path, shard: str) -> None:
    names = json.dumps({"weight_map": {"lm_head.weight": shard}})
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    (model / INDEX).write_text(names, encoding="utf-8")


@pytest.mark.parametrize(
    "shard",
    [
        INDEX,
        "config.json",
        "../model/model-00001-of-00001.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        ".",
        "",
    ],
)
def test_an_index_that_names_itself_or_leads_elsewhere(
    shell: Shell, model: Path, shard: str
) -> None:
    write_index(model, shard)
    ended = shell("model", "--quick")
    assert (ended.code, ended.out, ended.left) == (ExitCode.INCOMPLETE, "", ())


def test_a_link_that_leads_to_itself(shell: Shell, model: Path) -> None:
    file = model / "model.safetensors"
    file.unlink()
    file.symlink_to(file.name)
    ended = shell("model", "--quick")
    assert (ended.code, ended.out, ended.left) == (ExitCode.INCOMPLETE, "", ())


def test_links_to_files_elsewhere_are_followed(shell: Shell, model: Path, tmp_path: Path) -> None:
    """The Hub's cache is made of them."""
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for file in list(model.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(os.path.relpath(blobs / file.name, model))
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


def test_a_pipe_in_place_of_a_file_does_not_hang(shell: Shell, model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    ended = shell("model", "--quick")
    assert (ended.code, ended.out, ended.left) == (ExitCode.INCOMPLETE, "", ())


ASKS = """
import socket, sys

def connect(self, address):
    sys.stderr.write(f"ASKED {address}\\n")
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = lambda *address, **_: connect(None, address)
from precheck import cli
cli.main()
"""


@pytest.mark.parametrize(
    ("arguments", "offline", "asks"),
    [
        (("model", "--quick", "-o", "report.html"), None, False),
        (("model", "--static"), None, False),
        (("owner/name", "--quick"), "1", False),
        (("owner/name", "--quick"), None, True),
    ],
)
def test_nobody_is_asked_but_the_hub_for_a_hub_model(
    shell: Shell, arguments: tuple[str, ...], offline: str | None, asks: bool
) -> None:
    """No telemetry, and ``HF_HUB_OFFLINE`` is respected."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[1])}
    ran = subprocess.run(  # noqa: S603  our own program
        [sys.executable, "-c", ASKS, "scan", *arguments],
        cwd=shell.folder,
        env=environment | ({} if offline is None else {"HF_HUB_OFFLINE": offline}),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode in {ExitCode.GATE_HOLDS, ExitCode.INCOMPLETE}, ran.stderr
    assert ("ASKED" in ran.stderr) == asks
    assert ("huggingface.co" in ran.stderr) == asks
