"""``precheck fix`` on the command line: what it says, what it writes, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from precheck.checkpoint import rewriting
from precheck.checkpoint.output.workspace import workspace
from precheck.errors import ExitCode
from precheck.records.outcomes.fix import FIX_SCHEMA, Fix
from tests.cure.survey import planted
from tests.shell import change_config, change_weights, files_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.shell import Ended, Shell

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose gated product does not fit float16; cured by two tensors."""
    return planted("Llama", "product", tmp_path_factory.mktemp("broken") / "model")


@pytest.fixture
def model(shell: Shell, broken: Path) -> Path:
    """A copy of it, in the shell's folder."""
    shutil.rmtree(shell.folder / "model")
    return shutil.copytree(broken, shell.folder / "model")


def run(shell: Shell, *arguments: str | Path) -> Ended:
    return shell(*arguments, command="fix")


def raising(error: BaseException) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail


def test_writes_an_ordinary_checkpoint(shell: Shell, model: Path) -> None:
    (model / "README.md").write_text("# Mine\n\nWhat it is.\n")
    (model / "LICENSE").write_text("mine")
    ended = run(shell, "model", "-o", "fixed")
    assert ended.code == ExitCode.GATE_HOLDS, ended.err
    fixed = shell.folder / "fixed"
    assert {file.name for file in fixed.iterdir()} == {
        *(file.name for file in model.iterdir()),
        "precheck-fix.json",
    }
    assert (fixed / "LICENSE").read_text() == "mine"
    assert (fixed / "README.md").read_text().startswith("# Mine\n\nWhat it is.\n\n## Rescaled for")
    assert json.loads((fixed / "config.json").read_text())["dtype"] == "float16"
    assert json.loads((fixed / "precheck-fix.json").read_text())["schema"] == FIX_SCHEMA
    with safe_open(fixed / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    before, after = (load_file(folder / "model.safetensors") for folder in (model, fixed))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    for name in changed:
        ratio = (after[name] / before[name])[before[name] != 0]
        assert ratio.unique().log2().frac().abs().max() == 0
    assert all(".layers.1.mlp." in name or "norm" not in name for name in changed)
    for words in ("Proved on", "bit for bit", "fixed float16 + sdpa", "gated product", "2^-"):
        assert words in ended.out
    assert ended.out.splitlines()[-2:] == [
        "wrote fixed: load it like the original",
        "next: precheck scan fixed --require float16+sdpa",
    ]
    scanned = shell("fixed", "--quick", "--require", "float16+sdpa")
    assert scanned.code == ExitCode.GATE_HOLDS


def test_diff_explains_the_two_checkpoints_to_each_other(shell: Shell, model: Path) -> None:
    run(shell, model, "-o", "fixed")
    shell(model, "-o", "before.json", "--quick")
    shell("fixed", "-o", "after.json", "--quick")
    ended = shell("before.json", "after.json", command="diff")
    assert ended.code == ExitCode.GATE_FAILS
    printed = " ".join(ended.out.split())
    assert "weights multiplied by powers of two, as precheck fix does" in printed
    assert "in float32 the logits are the same; the residual stream is scaled by 2^-8" in printed


@pytest.mark.usefixtures("model")
def test_a_dry_run_writes_nothing_and_predicts(shell: Shell) -> None:
    ended = run(shell, "model", "-o", "fixed", "--dry-run")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ())
    assert "would run in float16 once rescaled (not proved yet)" in ended.out
    assert "bits before" in ended.out
    assert "Proved" not in ended.out
    assert ended.out.splitlines()[-2:] == [
        "nothing was written (--dry-run)",
        "next: precheck fix model -o fixed",
    ]


@pytest.mark.usefixtures("model")
def test_a_dry_run_needs_no_folder(shell: Shell) -> None:
    ended = run(shell, "model", "--dry-run")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ())
    assert ended.out.splitlines()[-1] == "next: precheck fix model -o DIR"
    shell.refuses(
        "model",
        command="fix",
        code=ExitCode.USAGE,
        says="no output folder",
        hint="--dry-run",
    )


def test_a_report_stands_for_the_scan(shell: Shell, model: Path) -> None:
    shell(model, "-o", "report.json", "--quick")
    ended = run(shell, model, "-o", "fixed", "--report", "report.json", "--dry-run")
    assert (ended.code, "nothing was written" in ended.out) == (ExitCode.GATE_HOLDS, True)
    assert "2 runs on cpu" in ended.err  # float32 alone, to see how large everything becomes


def test_a_report_about_other_weights_is_refused(shell: Shell, model: Path, healthy: Path) -> None:
    shell(healthy, "-o", "report.json", "--quick")
    ended = run(shell, model, "-o", "fixed", "--report", "report.json")
    assert ended.code == ExitCode.USAGE
    assert "the report is about other weights" in ended.error


def test_several_processes_would_write_one_folder(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setenv("WORLD_SIZE", "2")
    ended = run(shell, model, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.USAGE, ())
    assert "2 processes" in ended.error


def test_what_runs_already_is_left_alone(shell: Shell, healthy: Path) -> None:
    ended = run(shell, healthy, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ())
    assert ended.out.endswith("it runs in float16 as it is\n\nnothing was written\n")


def test_another_attention_implementation_is_cheaper(shell: Shell) -> None:
    ended = run(shell, "demo:qwen2-eager", "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ())
    printed = " ".join(ended.out.split())
    assert "another attention implementation fixes it: sdpa" in printed
    assert 'attn_implementation="sdpa"' in printed


def test_what_is_broken_in_float32_stays_broken(shell: Shell, model: Path) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][0, 0] = torch.inf

    change_weights(model, spoil)
    ended = run(shell, model, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.GATE_FAILS, ())
    assert "broken in float32 as well" in ended.out


def test_quantised_weights_are_refused_by_name(shell: Shell) -> None:
    shell.refuses(
        "demo:qwen2.5-gptq",
        "-o",
        "fixed",
        command="fix",
        code=ExitCode.INCOMPLETE,
        says="quantised weights: gptq",
        hint="fix the checkpoint it was made from",
    )


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_a_disk_too_small_is_said_before_anything_is_read(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage(total=10, used=0, free=10))
    ended = shell.refuses(
        model,
        "-o",
        "fixed",
        command="fix",
        code=ExitCode.USAGE,
        says="not enough disk space",
        hint="choose another disk",
    )
    assert "scanning" not in ended.err


def test_a_disk_that_fills_up_leaves_nothing(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setattr(
        rewriting, "tensor_bytes", raising(OSError(28, "No space left on device"))
    )
    ended = run(shell, model, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.USAGE, ())
    assert "No space left on device" in ended.error
    assert not [file for file in shell.folder.iterdir() if "fixed" in file.name]


def test_a_disk_that_fills_up_at_the_end_leaves_nothing(shell: Shell, model: Path) -> None:
    full = OSError(28, "No space left on device")
    shell.monkeypatch.setattr(Fix, "to_dict", raising(full))
    ended = run(shell, model, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.USAGE, ())
    assert "cannot write checkpoint: 'fixed': No space left on device" in ended.error


def test_an_interrupted_write_leaves_nothing(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setattr(rewriting, "tensor_bytes", raising(KeyboardInterrupt()))
    ended = run(shell, model, "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.INTERRUPTED, ())
    assert "nothing was written" in ended.err
    assert not [file for file in shell.folder.iterdir() if "fixed" in file.name]


def test_what_is_not_proved_is_not_kept(shell: Shell, model: Path) -> None:
    """The writer loses half of what it multiplies."""
    plain = rewriting.multiplied

    def wrong(tensor: torch.Tensor, changes: Any) -> torch.Tensor:
        result = plain(tensor, changes)
        result[: len(result) // 2] = 0
        return result

    shell.monkeypatch.setattr(rewriting, "multiplied", wrong)
    ended = run(shell, model, "-o", "fixed")
    assert not (shell.folder / "fixed/model.safetensors").exists()
    assert "the rescaled checkpoint could not be proved and was not kept" in ended.out
    printed = " ".join(ended.out.split())
    assert printed.count("float32 differs from the original in float32 by") == 1
    assert "gives the same logits" not in printed  # the recipe's float32 was not run
    assert ended.err.count("new probes: the original") == 1  # for the recipe's proof too


def test_a_folder_with_something_in_it_is_left_alone(shell: Shell, model: Path) -> None:
    (shell.folder / "fixed").mkdir()
    (shell.folder / "fixed/mine.txt").write_text("mine")
    shell.refuses(
        model,
        "-o",
        "fixed",
        command="fix",
        code=ExitCode.USAGE,
        says="output folder is not empty: 'fixed'",
        hint="--overwrite",
    )
    ended = run(shell, model, "-o", "fixed", "--overwrite")
    assert ended.code == ExitCode.GATE_HOLDS
    assert not (shell.folder / "fixed/mine.txt").exists()
    assert (shell.folder / "fixed/model.safetensors").is_file()


def test_an_overwritten_folder_stays_where_nothing_is_proved(shell: Shell, model: Path) -> None:
    (shell.folder / "fixed").mkdir()
    (shell.folder / "fixed/mine.txt").write_text("mine")
    before = files_in(shell.folder)

    shell.monkeypatch.setattr(rewriting, "tensor_bytes", raising(KeyboardInterrupt()))
    run(shell, model, "-o", "fixed", "--overwrite")
    assert files_in(shell.folder) == before


def bad_output(folder: Path) -> str:
    (folder / "file").write_text("x")
    return "file"


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "a file": (lambda f: ["-o", bad_output(f)], "not a folder"),
    "no such place": (lambda _: ["-o", "not/there"], "cannot write into"),
    "another dtype": (lambda _: ["-o", "out", "--for", "int4"], "unknown dtype: 'int4'"),
    "a size": (lambda _: ["-o", "out", "--max-memory", "much"], "not a size"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_usage(name: str, shell: Shell, model: Path) -> None:
    make, says = BAD[name]
    ended = run(shell, model, *make(shell.folder))
    assert ended.code == ExitCode.USAGE
    assert says in ended.error


def test_shards_and_an_index_where_one_file_would_be_too_large(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setattr(rewriting, "SHARD_BYTES", 100_000)
    ended = run(shell, model, "-o", "fixed")
    assert ended.code == ExitCode.GATE_HOLDS, ended.err
    index = json.loads((shell.folder / "fixed/model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert all((shell.folder / "fixed" / shard).is_file() for shard in shards)
    merged = {name for shard in shards for name in load_file(shell.folder / "fixed" / shard)}
    assert merged == set(index["weight_map"])


def test_stored_in_float16_what_is_lost_is_counted(shell: Shell, model: Path) -> None:
    tensors = {k: v.half() for k, v in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    ended = run(shell, model, "-o", "fixed")
    assert ended.code == ExitCode.GATE_HOLDS
    proof = json.loads((shell.folder / "fixed/precheck-fix.json").read_text())["proof"]
    assert 0 < proof["num_became_subnormal"] < proof["num_changed"] / 10
    assert proof["exactness"] == "rounded"


# What is beside it, and what belongs to others


def test_the_original_is_never_what_is_replaced(shell: Shell, model: Path) -> None:
    for output in (model, model / ".." / "model", shell.folder / "model"):
        shell.refuses(
            *(model, "-o", output, "--overwrite"),
            command="fix",
            code=ExitCode.USAGE,
            says="the original is inside the output folder",
            hint="choose another folder",
        )


def test_what_is_not_carried_over_is_said(shell: Shell, model: Path) -> None:
    (shell.folder / "id_rsa").write_text("secret")
    (model / "key.txt").symlink_to(shell.folder / "id_rsa")
    (model / "optimizer.pkl").write_bytes(b"x")
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling/config.json").write_text("{}")
    (model / "run.sh").write_text("#!/bin/sh")
    (model / "run.sh").chmod(0o755)
    change_config(model, transformers_weights="model.safetensors", configuration_files=[])
    ended = run(shell, "model", "-o", "fixed")
    assert ended.code == ExitCode.GATE_HOLDS, ended.err
    assert (
        "not copied: 'key.txt' (a link to outside the checkpoint), "
        "'optimizer.pkl' (weights or a pickle)\n"
    ) in ended.err
    fixed = shell.folder / "fixed"
    assert not {"key.txt", "optimizer.pkl"} & {file.name for file in fixed.iterdir()}
    assert (fixed / "1_Pooling/config.json").is_file()
    assert os.access(fixed / "run.sh", os.X_OK)
    config = json.loads((fixed / "config.json").read_text())
    assert not {"transformers_weights", "configuration_files"} & config.keys()


def test_a_file_full_of_holes_counts(shell: Shell, model: Path) -> None:
    with (model / "sparse.dat").open("wb") as file:
        file.truncate(1 << 43)
    ended = run(shell, "model", "-o", "fixed")
    assert (ended.code, ended.left) == (ExitCode.USAGE, ())
    assert "most of it for 'sparse.dat'" in ended.error


def test_leftovers_are_offered_for_removal(shell: Shell) -> None:
    """Before the checkpoint is looked for; there is none here."""

    def tell(*options: str) -> str:
        return shell("nothing", "-o", "fixed", *options, command="fix").err

    with workspace(shell.folder / "fixed") as folder:
        (folder / "new").mkdir()
        (folder / "new/model.safetensors").write_bytes(b"0" * 3000)
        assert "killed process" not in tell("--remove-leftovers")
    found = f"2.9 KiB left by a killed process: {folder}"
    assert f"{found} (--remove-leftovers deletes it)\n" in tell()
    assert f"{found} (--remove-leftovers deletes it)\n" in tell("--remove-leftovers", "--dry-run")
    assert f"removed {found}\n" in tell("--remove-leftovers")
    assert not folder.exists()


def test_an_interrupt_while_it_is_told_says_so(shell: Shell, model: Path) -> None:
    shell.monkeypatch.setattr(
        "precheck.commands.terminal.write_stdout", raising(KeyboardInterrupt())
    )
    ended = run(shell, model, "-o", "fixed")
    assert ended.code == ExitCode.INTERRUPTED
    assert ended.err.endswith("interrupted; the checkpoint is written: fixed\n")
