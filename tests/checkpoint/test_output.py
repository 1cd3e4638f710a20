"""A folder takes its place whole; what was there, and what belongs to others, is never lost."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from precheck.checkpoint.output import unfinished as output
from precheck.checkpoint.output.carried import copy_carried, find_carried
from precheck.checkpoint.output.unfinished import unfinished
from precheck.checkpoint.output.workspace import (
    NEW,
    OLD,
    PREFIX,
    find_leftovers,
    remove_leftover,
    workspace,
)
from precheck.errors import UsageError, WrittenInterrupted

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(params=["exchange", "two renames"])
def swaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """File systems that let two folders change places, and those that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(output, "exchange", lambda *_: False)
    return str(request.param)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "fixed"


def mine(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")


def write(target: Path, *, overwrite: bool = False, before: Callable[[], object] = int) -> None:
    """Writes a folder; something else may happen just before it takes its place."""
    with unfinished(target, overwrite=overwrite) as draft:
        (draft.folder / "new.txt").write_text("new")
        before()
        draft.take_place()


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_that_appeared_meanwhile_stays(target: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot write checkpoint: .*Directory not empty"):
        write(target, before=lambda: mine(target))
    assert left(target.parent) == ["fixed", "fixed/mine.txt"]


@pytest.mark.parametrize("appears", ["file", "link"])
def test_what_appeared_and_is_no_folder_stays(target: Path, appears: str, swaps: str) -> None:
    def appear() -> None:
        if appears == "file":
            target.write_text("mine")
        else:
            mine(target.with_name("elsewhere"))
            target.symlink_to("elsewhere")

    with pytest.raises(UsageError, match="Not a directory"):
        write(target, overwrite=True, before=appear)
    content = target if appears == "file" else target / "mine.txt"
    assert (content.read_text(), target.is_symlink(), swaps != "") == (
        "mine",
        appears == "link",
        True,
    )
    assert not list(target.parent.glob(f"{PREFIX}*"))


@pytest.mark.usefixtures("swaps")
def test_a_folder_is_replaced_and_keeps_its_permissions(target: Path) -> None:
    mine(target)
    target.chmod(0o750)
    write(target, overwrite=True)
    assert left(target.parent) == ["fixed", "fixed/new.txt"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o750


@pytest.mark.usefixtures("swaps")
def test_a_path_through_the_folder_itself(target: Path) -> None:
    mine(target)
    write(target / ".." / "fixed", overwrite=True)
    assert left(target.parent) == ["fixed", "fixed/new.txt"]


@pytest.mark.usefixtures("swaps")
def test_a_link_stays_one_and_what_it_leads_to_is_replaced(target: Path) -> None:
    mine(target)
    (target.parent / "link").symlink_to("fixed")
    write(target.parent / "link", overwrite=True)
    assert (target.parent / "link").is_symlink()
    assert (target / "new.txt").read_text() == "new"


@pytest.mark.usefixtures("swaps")
def test_an_empty_folder_may_be_taken(target: Path) -> None:
    target.mkdir(mode=0o700)
    write(target)
    assert (target / "new.txt").is_file()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


def fail_second_rename(
    monkeypatch: pytest.MonkeyPatch, target: Path, change: Callable[[Path], object]
) -> None:
    """Between taking the old folder aside and moving the new one there, something happens."""
    plain = Path.rename

    def rename(path: Path, to: Path) -> Path:
        done = plain(path, to)
        if to.name == OLD:
            change(target)
        return done

    monkeypatch.setattr(output, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename)


def test_a_folder_made_between_two_renames(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine(target)
    fail_second_rename(monkeypatch, target, mine)
    with pytest.raises(UsageError, match="is kept in") as raised:
        write(target, overwrite=True)
    (kept,) = target.parent.glob(f"{PREFIX}*/{OLD}")
    assert str(kept) in raised.value.message
    assert (kept / "mine.txt").read_text() == "mine"
    assert (target / "mine.txt").read_text() == "mine"
    assert not (kept.parent / NEW).exists()


def test_a_failure_between_two_renames_puts_back(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(target)
    monkeypatch.setattr(output, "exchange", lambda *_: False)
    plain = Path.rename

    def rename(path: Path, to: Path) -> Path:
        if path.name == NEW:
            raise OSError(5, "Input/output error")
        return plain(path, to)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(UsageError, match="Input/output error"):
        write(target, overwrite=True)
    assert left(target.parent) == ["fixed", "fixed/mine.txt"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("after", [OLD, NEW, "fixed"])
def test_a_signal_inside_a_rename_waits(
    target: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    mine(target)
    plain = Path.rename

    def rename(path: Path, to: Path) -> Path:
        done = plain(path, to)
        if to.name == after:
            signal.raise_signal(signal.SIGINT)
        return done

    monkeypatch.setattr(output, "exchange", lambda *_: False)
    monkeypatch.setattr(Path, "rename", rename)
    if after == NEW:  # nothing is renamed to that
        write(target, overwrite=True)
    else:
        with pytest.raises(WrittenInterrupted):
            write(target, overwrite=True)
    assert left(target.parent) == ["fixed", "fixed/new.txt"]


@pytest.mark.parametrize("where", [".", "..", "../.."])
def test_the_folder_one_is_in_is_not_replaced(
    tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(UsageError, match="contains the current folder"):
        write(Path(where), overwrite=True)


def test_a_disk_of_its_own_is_refused_at_the_start(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == target)
    with pytest.raises(UsageError, match="a mount point") as raised:
        write(target)
    assert raised.value.hint == f"choose a folder in it: {target}/fixed"


KILLED = """
import os, sys
from pathlib import Path
from precheck.checkpoint.output import unfinished as output
if sys.argv[2] == OLD:
    output.exchange = lambda *_: False
stages = iter(range(1000))
def hook(event, arguments):
    if any(isinstance(each, str | bytes) and PREFIX in os.fsdecode(each) for each in arguments):
        if next(stages) == int(sys.argv[1]):
            os.kill(os.getpid(), 9)
with output.unfinished(Path("fixed"), overwrite=True) as draft:
    sys.addaudithook(hook)
    (draft.folder / "new.txt").write_text("new")
    (draft.folder / "sub").mkdir()
    draft.take_place()
"""


@pytest.mark.parametrize("how", [NEW, OLD])
def test_killed_at_every_file_operation_the_old_or_the_new_folder_is_whole(
    target: Path, how: str
) -> None:
    """By exchange one of them is in its place; else the next run puts the old one back."""
    for stage in range(30):
        for folder in target.parent.iterdir():
            subprocess.run(["rm", "-rf", folder], check=True)  # noqa: S603, S607
        mine(target)
        code = KILLED.replace("OLD", repr(OLD)).replace("PREFIX", repr(PREFIX))
        ended = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code, str(stage), how],
            cwd=target.parent,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            check=False,
        )
        in_place = left(target) if target.exists() else None
        whole = (["mine.txt"], ["new.txt", "sub"])
        assert in_place in (whole if how == NEW else (*whole, None)), stage
        leftovers = find_leftovers(target.parent)
        assert left(target) in whole
        for leftover in leftovers:
            remove_leftover(leftover)
        if ended.returncode == 0:
            break
        # killed before it was locked, or after, it leaves an empty folder
        kept = {path for path in target.parent.glob(f"{PREFIX}*") if any(path.iterdir())}
        assert not kept
    assert ended.returncode == 0
    assert stage > 5  # else it was not killed at all


# What killed processes leave


def test_what_a_running_process_writes_is_no_leftover(target: Path) -> None:
    with workspace(target) as folder:
        assert find_leftovers(target.parent) == ()
        (folder / NEW).mkdir()
        (folder / NEW / "weights").write_bytes(b"0" * 1000)
    (leftover,) = find_leftovers(target.parent)
    assert leftover.folder == folder
    assert leftover.size_bytes == 1000 + len("fixed")
    remove_leftover(leftover)
    assert left(target.parent) == []


@pytest.mark.parametrize("fails", ["open", "write"])
def test_a_disk_that_is_full_at_the_lock_leaves_nothing(
    target: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    plain = os.open

    def full(path: object, *arguments: Any, **options: Any) -> int:
        if fails == "write" or "lock" in str(path):
            raise OSError(28, "No space left on device")
        return plain(str(path), *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, fails, full)
        with pytest.raises(UsageError, match="No space left on device"):
            write(target)
    assert left(target.parent) == []


def test_what_is_locked_between_finding_and_removing_stays(target: Path) -> None:
    with workspace(target) as folder:
        pass
    (leftover,) = find_leftovers(target.parent)
    with (folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        remove_leftover(leftover)
        assert folder.is_dir()


def test_what_cannot_be_removed_can_be_found_again(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(target)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)
        write(target, overwrite=True)
    (leftover,) = find_leftovers(target.parent)
    assert list(leftover.folder.rglob("mine.txt"))
    remove_leftover(leftover)
    assert left(target.parent) == ["fixed", "fixed/new.txt"]


def test_what_only_looks_like_a_leftover_is_left_alone(tmp_path: Path) -> None:
    mine(tmp_path / f"{PREFIX}without-lock")
    mine(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "lock").write_text("fixed")
    linked = tmp_path / f"{PREFIX}linked-lock"
    mine(linked)
    (linked / "lock").symlink_to("../elsewhere/lock")
    (tmp_path / f"{PREFIX}file").write_text("mine")
    pipe = tmp_path / f"{PREFIX}pipe"
    pipe.mkdir()
    os.mkfifo(pipe / "lock")
    assert find_leftovers(tmp_path) == ()


@pytest.mark.parametrize("name", ["../../outside", "/outside-of-everything", "..", ""])
def test_a_lock_that_names_another_place_puts_nothing_there(tmp_path: Path, name: str) -> None:
    parent = tmp_path / "a" / "b"
    parent.mkdir(parents=True)
    with workspace(parent / "fixed") as folder:
        (folder / "lock").write_text(name)
        mine(folder / OLD)
    find_leftovers(parent)
    places = (tmp_path / "outside", Path("/outside-of-everything"), parent.parent / "mine.txt")
    assert not any(place.exists() for place in places)


# What goes with a checkpoint


def carried(folder: Path) -> tuple[list[str], dict[str, str]]:
    found = find_carried(folder)
    return [each.name for each in found.files], dict(found.left_out)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "LICENSE"):
        (folder / name).write_text(name)
    return folder


def add(folder: Path, name: str, content: str = "x") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def test_folders_go_with_it_and_so_do_run_bits(checkpoint: Path, tmp_path: Path) -> None:
    add(checkpoint, "1_Pooling/config.json")
    add(checkpoint, "additional_chat_templates/tool_use.jinja")
    add(checkpoint, "a/b/c/deep.txt")
    add(checkpoint, ".gitattributes")
    add(checkpoint, "convert.sh").chmod(0o755)
    add(checkpoint, "private.txt").chmod(0o400)
    names, left_out = carried(checkpoint)
    assert set(names) == {
        *("tokenizer.json", "LICENSE", "1_Pooling/config.json", "a/b/c/deep.txt"),
        *("additional_chat_templates/tool_use.jinja", ".gitattributes"),
        *("convert.sh", "private.txt"),
    }
    assert left_out == {}
    copy = tmp_path / "copy"
    copy.mkdir()
    copy_carried(find_carried(checkpoint).files, copy)
    modes = {name: stat.S_IMODE((copy / name).stat().st_mode) for name in names}
    assert (modes["convert.sh"], modes["private.txt"]) == (0o755, 0o600)
    assert (copy / "a/b/c/deep.txt").read_text() == "x"


@pytest.mark.parametrize(
    "name",
    ["a.ckpt", "a.pkl", "A.PKL", "sub/a.bin", "optimizer.pt", "rng_state.pth", "a.pickle",
     "a.joblib", "2_Dense/pytorch_model.bin"],
)  # fmt: skip
def test_pickles_do_not_go_with_it_and_that_is_said(checkpoint: Path, name: str) -> None:
    add(checkpoint, name)
    names, left_out = carried(checkpoint)
    assert name not in names
    assert left_out == {name: "weights or a pickle"}


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "sub/model.safetensors", "model-00001-of-00002.safetensors",
     "pytorch_model.bin.index.json", "onnx/model.onnx", "onnx/model.onnx_data", "tf_model.h5",
     "flax_model.msgpack", "a.gguf", "rust_model.ot", "consolidated.00.pth",
     ".git/lfs/objects/aa", ".cache/huggingface/x", "__pycache__/modeling.pyc", ".env",
     "earlier/precheck-fix.json", ".precheck-unfinished-x/new/tokenizer.json"],
)  # fmt: skip
def test_other_weights_and_what_is_hidden_stay_behind(checkpoint: Path, name: str) -> None:
    add(checkpoint, name)
    assert name not in carried(checkpoint)[0]


def test_weights_of_a_pipelines_own_modules_go_with_it(checkpoint: Path) -> None:
    add(checkpoint, "2_Dense/model.safetensors")
    add(checkpoint, "3_Other/model.safetensors")
    add(checkpoint, "modules.json", json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    names, _ = carried(checkpoint)
    assert "2_Dense/model.safetensors" in names
    assert not {"3_Other/model.safetensors", "model.safetensors"} & set(names)


@pytest.mark.parametrize("content", ["{", "[1]", "3", '[{"path": 3}]', "[" * 100_000])
def test_modules_that_are_none(checkpoint: Path, content: str) -> None:
    add(checkpoint, "modules.json", content)
    assert "modules.json" in carried(checkpoint)[0]


def test_links_that_lead_out_are_not_followed(checkpoint: Path, tmp_path: Path) -> None:
    add(tmp_path, "home/id_rsa", "secret")
    (checkpoint / "key.txt").symlink_to(tmp_path / "home/id_rsa")
    (checkpoint / "folder").symlink_to(tmp_path / "home")
    (checkpoint / "inside.txt").symlink_to("LICENSE")
    (checkpoint / "through.txt").symlink_to("key.txt")
    (checkpoint / "broken.txt").symlink_to("nothing")
    (checkpoint / "loop.txt").symlink_to("loop.txt")
    add(checkpoint, "optimizer.pkl")
    add(checkpoint, ".git/config")
    (checkpoint / "harmless.txt").symlink_to("optimizer.pkl")
    (checkpoint / "config.txt").symlink_to(".git/config")
    os.mkfifo(checkpoint / "pipe")
    names, left_out = carried(checkpoint)
    assert set(names) == {"tokenizer.json", "LICENSE", "inside.txt"}
    assert left_out == {
        **dict.fromkeys(("key.txt", "folder", "through.txt"), "a link to outside the checkpoint"),
        **dict.fromkeys(("broken.txt", "loop.txt"), "a broken link"),
        **dict.fromkeys(("harmless.txt", "config.txt"), "a link to something that is not copied"),
        "optimizer.pkl": "weights or a pickle",
        "pipe": "not a regular file",
    }


def test_the_hubs_cache_is_made_of_links(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    add(tmp_path, "models--a--b/blobs/aaaa", "tokenizer")
    add(tmp_path, "id_rsa", "secret")
    snapshot.mkdir(parents=True)
    (snapshot / "tokenizer.json").symlink_to("../../blobs/aaaa")
    (snapshot / "key.txt").symlink_to(tmp_path / "id_rsa")
    assert carried(snapshot) == (
        ["tokenizer.json"],
        {"key.txt": "a link to outside the checkpoint"},
    )


def test_a_cache_whose_blobs_lead_elsewhere(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    add(tmp_path, "home/id_rsa", "secret")
    snapshot.mkdir(parents=True)
    (tmp_path / "models--a--b" / "blobs").symlink_to(tmp_path / "home")
    (snapshot / "key.txt").symlink_to("../../blobs/id_rsa")
    assert carried(snapshot) == ([], {"key.txt": "a link to outside the checkpoint"})


def test_a_link_put_in_place_of_a_file_at_the_last_moment(checkpoint: Path, tmp_path: Path) -> None:
    secret = add(tmp_path, "id_rsa", "secret")
    found = find_carried(checkpoint)
    (checkpoint / "LICENSE").unlink()
    (checkpoint / "LICENSE").symlink_to(secret)
    copy = tmp_path / "copy"
    copy.mkdir()
    with pytest.raises(OSError, match="symbolic links"):
        copy_carried(found.files, copy)
    assert all("secret" not in file.read_text() for file in copy.iterdir())


def test_holes_count(checkpoint: Path) -> None:
    with (checkpoint / "sparse.dat").open("wb") as file:
        file.truncate(1 << 40)
    assert find_carried(checkpoint).size_bytes > 1 << 40
