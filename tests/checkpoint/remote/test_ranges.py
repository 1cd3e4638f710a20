"""Byte ranges of files on the Hub: what servers do wrong is noticed, what they ask for is done."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from precheck.checkpoint.hub import fetch_description
from precheck.checkpoint.remote.coalesced import coalesced
from precheck.checkpoint.remote.header import read_header
from precheck.checkpoint.remote.opening import open_remote
from precheck.checkpoint.remote.transport import check_redirect, is_of_the_hub
from precheck.checkpoint.remote.waiting import asked_to_wait
from precheck.checkpoint.shards import Span
from precheck.checkpoint.weights import Weights
from precheck.errors import CheckpointAccessError, CheckpointCorruptError, UnsupportedModelError
from tests.hub_server import (
    COMMIT,
    LATER_COMMIT,
    REPO,
    TOKEN,
    Hub,
    Virtual,
    endpoint,
    folder_files,
    served,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from precheck.checkpoint.remote.files import RemoteFiles
    from precheck.records.progress import Announcement, Step

NAMES = ("first.safetensors", "second.safetensors")
BIG = Virtual({"weight": ("BF16", (1 << 15, 1 << 14)), "norm": ("BF16", (64,))})
"""A gigabyte."""


def ignore(_event: Announcement | Step) -> None:
    """An observer that does not care."""


@pytest.fixture(autouse=True)
def short_waits_and_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precheck.checkpoint.remote.files._USUAL_HEADER_BYTES", 16)
    monkeypatch.setattr("precheck.checkpoint.remote.waiting._FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of tensors in every dtype that torch can make numbers of."""
    folder = tmp_path_factory.mktemp("repository")
    torch.manual_seed(0)
    some = torch.randn(40, 300)
    save_file(
        {
            "a.weight": some,
            "a.bias": some[0].bfloat16(),
            "scale": torch.tensor(2.0, dtype=torch.float16),
            "eight": some.to(torch.float8_e4m3fn),
            "empty": torch.empty(0, 3),
        },
        folder / NAMES[0],
        metadata={"format": "pt"},
    )
    save_file({"b.weight": some.half(), "ids": torch.arange(1000)}, folder / NAMES[1])
    (folder / "config.json").write_text("{}")
    return folder


@contextmanager
def opened(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, token: str | None = None
) -> Iterator[tuple[RemoteFiles, Weights]]:
    """The weight files of a repository, read where they are."""
    with endpoint(hub, tmp_path / "cache", monkeypatch, token=token):
        snapshot = fetch_description(REPO, revision=None, with_code=False, check=lambda *_: None)
        names = [name for name in hub.files if name.endswith(".safetensors")]
        remote = open_remote(snapshot, names, observe=ignore)
        assert remote is not None
        files = [snapshot.folder / name for name in names]
        with Weights(files, open_shard=remote.open_shard) as weights:
            yield remote, weights


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_every_tensor_is_what_the_file_holds(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, remote),
        Weights([folder / name for name in NAMES]) as local,
    ):
        assert list(remote) == list(local)
        assert remote.headers() == local.headers()
        for name in local:
            assert (remote.dtype(name), remote.shape(name)) == (
                local.dtype(name),
                local.shape(name),
            )
            assert torch.equal(as_bytes(remote[name]), as_bytes(local[name]))
        buffer = torch.empty(10_000, dtype=torch.uint8)
        rows = remote.read_rows_into("a.weight", [3, 39, 4], buffer)
        assert torch.equal(rows, local["a.weight"][[3, 39, 4]])
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_hub_is_asked_once_where_a_file_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        for name in weights:
            weights[name]
        servers = [server for server, _, path in hub.requests if ".safetensors" in path]
        assert servers.count("hub") == len(NAMES)
        assert servers.count("storage") >= len(NAMES)


def test_what_is_held_is_not_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (remote, weights),
    ):
        parts = {name: (Span(0, weights.nbytes(name)),) for name in ("a.bias", "b.weight", "scale")}
        plan, before = remote.plan(parts), hub.total_bytes()
        remote.hold(parts)
        num_requests = len(hub.requests)
        assert hub.total_bytes() - before == plan.num_bytes
        for name in parts:
            weights[name]
        weights.read_rows_into("b.weight", [7], torch.empty(600, dtype=torch.uint8))
        assert len(hub.requests) == num_requests
        assert remote.num_requests == len(hub.ranges)
        assert remote.num_bytes == hub.bytes_sent["storage"]


def test_an_address_that_has_expired_is_asked_for_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        hub.key += 1
        hub.requests.clear()
        weights["a.weight"]
        assert [server for server, _, _ in hub.requests] == ["storage", "hub", "storage"]


def test_addresses_that_expire_at_once_are_given_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder), expires_at_once=True) as hub,
        pytest.raises(CheckpointAccessError, match="it answers 403"),
        opened(hub, tmp_path, monkeypatch),
    ):
        pass
    assert len(hub.ranges) <= 30


@pytest.mark.parametrize("headers", [{"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=1'}])
def test_a_server_that_asks_to_wait_is_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    with served(folder_files(folder), limited=[(429, headers)]) as hub:
        start = time.monotonic()
        with opened(hub, tmp_path, monkeypatch) as (_, weights):
            assert weights["scale"] == 2.0
        assert time.monotonic() - start >= 1.0


def test_an_exhausted_limit_is_kept_before_it_is_broken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        hub.extra_headers = {"RateLimit": '"resolvers";r=0;t=1'}
        weights["scale"]
        hub.extra_headers = {}
        start = time.monotonic()
        weights["a.bias"]
        assert time.monotonic() - start >= 0.9


def test_nobody_waits_for_hours(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder), limited=[(429, {"Retry-After": "7200"})]) as hub,
        pytest.raises(CheckpointAccessError, match="asks to wait 7200 seconds"),
        opened(hub, tmp_path, monkeypatch),
    ):
        pass


def test_what_headers_ask_for() -> None:
    moment = datetime.now(UTC) + timedelta(seconds=90)
    assert asked_to_wait({"retry-after": format_datetime(moment, usegmt=True)}) == pytest.approx(
        90, abs=2
    )
    assert asked_to_wait({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    for nothing in ({}, {"Retry-After": "soon"}, {"RateLimit": '"api";r=3;t=55'}):
        assert asked_to_wait(nothing) is None


def test_a_busy_server_is_asked_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy: list[tuple[int, dict[str, str]]] = [(503, {}), (502, {}), (500, {})]
    with (
        served(folder_files(folder), limited=[*busy]) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        assert weights["scale"] == 2.0
    with (
        served(folder_files(folder), limited=50 * busy) as hub,
        pytest.raises(CheckpointAccessError, match="it answers 50"),
        opened(hub, tmp_path / "again", monkeypatch),
    ):
        pass


def test_a_proxy_that_ignores_ranges_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served({"big.safetensors": BIG}, ignores_ranges=True) as hub,
        pytest.raises(CheckpointAccessError, match="but the whole file"),
        opened(hub, tmp_path, monkeypatch),
    ):
        pass
    assert hub.bytes_sent["storage"] < 16 << 20  # what the sockets held


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Encoding": "gzip"},
        {"Content-Range": "bytes 5-20/100"},
        {"Content-Range": "bytes"},
        {"Content-Type": "multipart/byteranges", "Content-Range": ""},
    ],
)
def test_another_part_than_was_asked_for_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        hub.extra_headers = headers
        with pytest.raises((CheckpointAccessError, CheckpointCorruptError)):
            weights["a.weight"]


def test_a_transfer_that_is_cut_ten_times_completes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
        Weights([folder / name for name in NAMES]) as local,
    ):
        hub.cuts, hub.bytes_sent["storage"] = 10, 0
        assert torch.equal(weights["a.weight"], local["a.weight"])
        assert hub.cuts == 0
        assert hub.bytes_sent["storage"] == weights.nbytes("a.weight")


def test_transfers_that_bring_nothing_are_given_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        hub.cuts, hub.cut_after = 1000, 0
        with pytest.raises(CheckpointAccessError, match=r"does not send 'first\.safetensors'"):
            weights["a.weight"]
        assert hub.cuts > 990


def shorten(hub: Hub) -> None:
    hub.files[NAMES[0]] = Virtual({"a.weight": ("F32", (4, 4))})


def replace_content(hub: Hub) -> None:
    hub.generation = "another"


def move_commit(hub: Hub) -> None:
    hub.extra_headers = {"X-Repo-Commit": LATER_COMMIT}


@pytest.mark.parametrize("change", [shorten, replace_content, move_commit])
def test_a_file_that_changes_between_two_requests_is_noticed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
) -> None:
    with (
        served(folder_files(folder)) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        hub.key += 1
        change(hub)
        with pytest.raises(CheckpointCorruptError, match="changed on the Hub"):
            weights["a.weight"]


def test_a_branch_that_moves_does_not_mix_commits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def move(hub: Hub, path: str) -> None:
        if path.endswith("?blobs=true"):
            hub.commit = COMMIT
        elif "/revision/main" in path:
            hub.commit = LATER_COMMIT

    with (
        served(folder_files(folder), change=move) as hub,
        opened(hub, tmp_path, monkeypatch) as (_, weights),
    ):
        for name in weights:
            weights[name]
        commits = {path.split("/")[4] for _, _, path in hub.requests if "/resolve/" in path}
        assert commits == {LATER_COMMIT}


def test_the_token_goes_to_the_hub_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder), is_private=True) as hub,
        opened(hub, tmp_path, monkeypatch, token=TOKEN) as (_, weights),
    ):
        weights["a.weight"]
        assert {server for server, _ in hub.tokens} == {"hub"}
        resolved = [path for server, _, path in hub.requests if server == "storage"]
        assert resolved


def test_a_private_repository_says_how_to_log_in(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served(folder_files(folder), is_private=True) as hub,
        pytest.raises(CheckpointAccessError) as caught,
        opened(hub, tmp_path, monkeypatch),
    ):
        pass
    assert "hf auth login" in str(caught.value.hint)


@pytest.mark.parametrize(
    "address", ["http://example.com/model", "ftp://example.com/model", "file:///etc/passwd"]
)
def test_redirects_to_what_others_can_read_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with (
        served(folder_files(folder), redirects_to=address) as hub,
        pytest.raises(CheckpointAccessError, match="not https"),
        opened(hub, tmp_path, monkeypatch),
    ):
        pass


def test_which_redirects_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("https://cdn.example/x?Signature=y", "http://127.0.0.1:9/x", "http://[::1]/x"):
        check_redirect(address)
    for address in ("http://127.0.0.1.example.com/x", "http://10.0.0.1/x"):
        with pytest.raises(CheckpointAccessError):
            check_redirect(address)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    assert is_of_the_hub("https://huggingface.co:443/a/resolve/main/b")
    for address in ("http://huggingface.co/a", "https://huggingface.co.example.com/a"):
        assert not is_of_the_hub(address)


def test_circles_of_redirects_end(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = f"/{REPO}/resolve/{COMMIT}/{NAMES[0]}"
    with (
        served(folder_files(folder), redirects_to=there) as hub,
        pytest.raises(CheckpointAccessError, match="circles"),
        opened(hub, tmp_path, monkeypatch),
    ):
        pass


def test_files_in_the_cache_are_read_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(folder_files(folder)) as hub:
        with endpoint(hub, tmp_path / "cache", monkeypatch):
            snapshot = fetch_description(
                REPO, revision=None, with_code=False, check=lambda *_: None
            )
        for name in NAMES[:1]:
            (snapshot.folder / name).write_bytes((folder / name).read_bytes())
        hub.requests.clear()
        with opened(hub, tmp_path, monkeypatch) as (_, weights):
            weights["a.weight"]
            weights["b.weight"]
            assert {path.split("?")[0].rsplit("/", 1)[-1] for path in hub.ranges} == {NAMES[1]}
        (snapshot.folder / NAMES[1]).write_bytes((folder / NAMES[1]).read_bytes())
        assert open_remote(snapshot, NAMES, observe=ignore) is None


def test_offline_says_that_the_weights_are_not_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(folder_files(folder)) as hub:
        with endpoint(hub, tmp_path / "cache", monkeypatch):
            snapshot = fetch_description(
                REPO, revision=None, with_code=False, check=lambda *_: None
            )
        hub.requests.clear()
        with pytest.raises(CheckpointAccessError, match="cannot be reached"):
            open_remote(snapshot, NAMES, observe=ignore)
        assert hub.requests == []


def test_pickles_are_not_read_in_part(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        served({**folder_files(folder), "pytorch_model.bin": BIG}) as hub,
        endpoint(hub, tmp_path / "cache", monkeypatch),
    ):
        snapshot = fetch_description(REPO, revision=None, with_code=False, check=lambda *_: None)
        with pytest.raises(UnsupportedModelError, match="cannot be read in part"):
            open_remote(snapshot, ["pytorch_model.bin"], observe=ignore)


def header_of(content: bytes, *, size: int | None = None, expected: int = 16) -> Any:
    return read_header(
        lambda start, end: bytearray(content[start:end]),
        size=len(content) if size is None else size,
        expected=expected,
        where="x.safetensors",
    )


@pytest.mark.parametrize("expected", [0, 8, 100, 10**6])
def test_a_header_is_what_safetensors_reads(folder: Path, expected: int) -> None:
    for name in NAMES:
        header = header_of((folder / name).read_bytes(), expected=expected)
        with safe_open(folder / name, framework="pt") as file:
            assert list(header.tensors) == list(file.keys())


def file_of(header: object, *, content: int = 8) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(content)


def entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        (1 << 40).to_bytes(8, "little"),
        (200_000_000).to_bytes(8, "little"),
        file_of(b"{"),
        file_of(b"[]"),
        file_of(b"[" * 100_000),
        file_of(b"\xff\xfe"),
        file_of({"a": 3}),
        file_of({"a": {}}),
        file_of({"a": entry(shape=[-2])}),
        file_of({"a": entry(shape=[2.0])}),
        file_of({"a": entry(shape=[True, 2])}),
        file_of({"a": entry(shape=[3])}),
        file_of({"a": entry(shape="2")}),
        file_of({"a": entry(data_offsets=[0])}),
        file_of({"a": entry(data_offsets=[8, 0])}),
        file_of({"a": entry()}, content=7),
        file_of({"a": entry()}, content=9),
        file_of({"a": entry(data_offsets=[4, 12])}, content=12),
        file_of({"a": entry(), "b": entry()}),
        file_of({"a": entry(dtype=["F32"])}),
    ],
)
def test_a_broken_header_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorruptError, match=r"x\.safetensors"):
        header_of(content)
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(Exception):  # noqa: B017, PT011  its own library refuses it too
        safe_open(path, framework="pt")


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(UnsupportedModelError, match="F3"):
        header_of(file_of({"a": entry(dtype="F3")}))


def test_spans_next_to_each_other_are_one_request() -> None:
    spans = [Span(0, 10), Span(10, 20), Span(5, 12), Span(100, 110), Span(7, 7)]
    assert coalesced(spans, gap=50) == (Span(0, 20), Span(100, 110))
    assert coalesced(spans, gap=81) == (Span(0, 110),)
    assert coalesced([], gap=1) == ()
