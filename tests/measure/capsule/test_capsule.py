"""A capsule shows its overflow in a process that has no precheck."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import precheck
from precheck.errors import CheckpointCorruptError, ExitCode, UsageError, first_line
from precheck.measure import runs
from precheck.measure.capsule import write as capsule
from precheck.records.progress import Announcement, Step
from precheck.saved import read_report

if TYPE_CHECKING:
    from precheck.records.report import Report
    from tests.shell import Shell

SITE = Path(torch.__file__).parents[1]
NO_PRECHECK = ("-S",)
"""Without site, the .pth file that makes precheck importable is not read."""

STORIES = {
    "qwen2-eager": ("model.layers.3", "aten.bmm at modeling_qwen2.py:155", "230,516"),
    # in 6 of 22 probes, and not in the first
    "gemma-prompt": ("model.layers.3", "aten.mul at modeling_gemma.py", "75,605"),
    "left-padding": ("model.layers.3", "aten._softmax at modeling_qwen2.py", "1,"),
    "qwen2.5-vl-tower": ("model.visual.blocks.3", "aten.add at modeling_qwen2_5_vl.py", "89,1"),
}


def scanned(name: str, folder: Path, **options: object) -> tuple[Report, list[str]]:
    said: list[str] = []

    def observe(event: Announcement | Step) -> None:
        if isinstance(event, Announcement):
            said.append(event.text)

    report = precheck.scan(f"demo:{name}", capsule=folder, observe=observe, **options)  # type: ignore[arg-type]
    return report, said


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        "PYTHONPATH": str(SITE),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(  # noqa: S603  the script under test
        [sys.executable, *NO_PRECHECK, "reproduce.py"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written without being tried, which takes seconds."""
    monkeypatch.setattr(capsule, "_breaks", lambda *_args, **_named: True)


def test_the_process_really_has_no_precheck(tmp_path: Path) -> None:
    (tmp_path / "reproduce.py").write_text("import torch, precheck", encoding="utf-8")
    assert "No module named 'precheck'" in run(tmp_path).stderr


@pytest.mark.pinned("its line numbers are those of the tested transformers")
@pytest.mark.parametrize("name", STORIES)
def test_the_overflow_shows_without_the_model(name: str, tmp_path: Path) -> None:
    layer, operation, size = STORIES[name]
    folder = tmp_path / "capsule"
    quick = name == "qwen2-eager"  # it overflows on any text
    report, said = scanned(name, folder, quick=quick, dtypes=("float16",))
    assert said[-1].startswith("capsule (")
    ended = run(folder)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"{layer} of ")
    assert operation in ended.stdout
    assert size in ended.stdout
    broken = next(run.first_overflow for run in report.runs if run.first_overflow)
    assert f"{broken.op} at {broken.source} " in ended.stdout
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2**20


@pytest.mark.usefixtures("untried")
def test_only_the_weights_up_to_the_operation_are_in_it(tmp_path: Path) -> None:
    scanned("qwen2-eager", tmp_path / "capsule", quick=True)
    names = set(load_file(tmp_path / "capsule" / "weights.safetensors"))
    assert "self_attn.q_proj.weight" in names
    assert not {name for name in names if name.startswith(("mlp.", "self_attn.o_proj"))}


@pytest.mark.usefixtures("untried")
def test_the_script_says_so_where_nothing_overflows(tmp_path: Path) -> None:
    """The healthy twin: the same capsule, its large bias taken out."""
    folder = tmp_path / "capsule"
    scanned("qwen2-eager", folder, quick=True)
    weights = load_file(folder / "weights.safetensors")
    for name in ("self_attn.q_proj.bias", "self_attn.k_proj.bias"):
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "weights.safetensors")
    ended = run(folder)
    assert ended.returncode == 1
    assert "float16: no overflow" in ended.stdout


@pytest.mark.parametrize("name", ["qwen3-headroom"])
def test_nothing_is_written_where_no_layer_overflows(name: str, tmp_path: Path) -> None:
    _, said = scanned(name, tmp_path / "capsule", quick=True)
    assert said[-1] == "no capsule: no decoder layer overflowed"
    assert not list(tmp_path.iterdir())


def test_what_does_not_show_again_is_not_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capsule, "_breaks", lambda *_args, **_named: False)
    _, said = scanned("qwen2-eager", tmp_path / "capsule", quick=True)
    assert said[-1] == "no capsule: run on its own, model.layers.3 does not overflow"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("untried")
def test_resident_weights_give_the_same_capsule(tmp_path: Path) -> None:
    for name, resident in (("streamed", False), ("resident", True)):
        scanned("llama-product", tmp_path / name, quick=True, resident=resident)
    for file in ("weights.safetensors", "inputs.safetensors"):
        streamed, resident_ones = (
            load_file(tmp_path / name / file) for name in ("streamed", "resident")
        )
        assert streamed.keys() == resident_ones.keys()
        assert all(torch.equal(streamed[name], resident_ones[name]) for name in streamed)


@pytest.mark.usefixtures("untried")
def test_the_report_is_the_same_with_and_without(tmp_path: Path) -> None:
    report, _ = scanned("qwen2-eager", tmp_path / "capsule", quick=True)
    assert precheck.scan("demo:qwen2-eager", quick=True) == report


@pytest.mark.usefixtures("untried")
def test_it_tells_what_it_is(tmp_path: Path) -> None:
    scanned("qwen2-eager", tmp_path / "capsule", quick=True)
    description = json.loads((tmp_path / "capsule" / "capsule.json").read_text(encoding="utf-8"))
    assert description["module"] == "model.layers.3.self_attn"
    assert description["reference_abs_max"] == pytest.approx(230_000, rel=0.01)
    text = (tmp_path / "capsule" / "README.md").read_text(encoding="utf-8")
    assert "share a capsule only if you may share the prompt" in text


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        ValueError("parameters of generation in the config"),
        MemoryError(),
        CheckpointCorruptError("weights file changed"),
    ],
)
def test_a_capsule_that_fails_costs_nothing_but_itself(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(runs, "candidate", lambda _: object())
    monkeypatch.setattr(runs, "write_capsule", fail)
    prepared: Any = SimpleNamespace(
        request=SimpleNamespace(capsule=tmp_path / "capsule"), skeletons=(), models=None
    )
    gathered: Any = SimpleNamespace(merged=lambda _: ())
    said: list[Announcement | Step] = []
    runs._write_capsule(prepared, gathered, observe=said.append)  # noqa: SLF001
    assert said == [Announcement(text=f"no capsule: {first_line(error)}", is_problem=True)]


def test_a_scan_whose_capsule_has_no_room_is_whole(shell: Shell) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shell.monkeypatch.setattr(capsule, "_write_inputs", full)
    ended = shell(
        *("demo:qwen2-eager", "--quick", "--quiet", "--capsule", "capsule"),
        *("--dtype", "float16", "-o", "report.json", "--fail-on", "never"),
    )
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ("report.json",))
    assert "no capsule: cannot write capsule: 'capsule': No space left on device\n" in ended.err
    assert read_report("report.json").complete


@pytest.mark.usefixtures("untried")
def test_a_folder_that_is_a_link_is_filled(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "capsule").symlink_to("elsewhere")
    _, said = scanned("qwen2-eager", tmp_path / "capsule", quick=True, dtypes=("float16",))
    assert said[-1].startswith("capsule (")
    assert (tmp_path / "capsule").is_symlink()
    assert (tmp_path / "elsewhere/capsule.json").is_file()


@pytest.mark.parametrize("case", ["not empty", "a file", "no parent", "static", "live"])
def test_a_capsule_that_cannot_be_is_refused_before_the_scan(case: str, tmp_path: Path) -> None:
    folder = tmp_path / "capsule"
    match case:
        case "not empty":
            folder.mkdir()
            (folder / "x").touch()
        case "a file":
            folder.touch()
        case "no parent":
            folder = tmp_path / "missing" / "capsule"
        case _:
            pass
    model = nn.Linear(2, 2) if case == "live" else "demo:qwen2-eager"
    with pytest.raises(UsageError):
        precheck.scan(model, capsule=folder, static=case == "static")
