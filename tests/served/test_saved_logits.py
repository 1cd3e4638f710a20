"""What a scan saves is enough to name a server's configuration, and no file of it can hurt."""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
import random
import shutil
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy

from precheck import cli
from precheck.checkpoint.naming.location import open_description
from precheck.errors import ExitCode, ReportError
from precheck.records.configuration import Configuration
from precheck.records.outcomes.saved_logits import digest_of
from precheck.records.outcomes.served import Answer
from precheck.records.precision import Dtype
from precheck.served.request import VerifyRequest
from precheck.served.runs import file as logits_file
from precheck.served.runs.file import as_bytes, read_logits
from precheck.served.runs.saved import SavedRuns
from precheck.served.verify import verify
from tests.served.conftest import NUM_GENERATED, QUICK
from tests.served.engines import Engine, serving
from tests.served.test_plants import another_seed, codes, times_1_1
from tests.tiny_models import save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from precheck.records.outcomes.served import Served
    from precheck.served.runs.file import SavedLogits
    from tests.served.conftest import Scanned


@dataclass
class Ended:
    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ended:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["precheck", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    captured = capsys.readouterr()
    return Ended(int(ended.value.code or 0), captured.out, captured.err)


def compared(engine: Engine, model: Path, logits: SavedLogits | None) -> Served:
    request = VerifyRequest(
        dtypes=(Dtype.FLOAT32, Dtype.BFLOAT16),
        attn_implementations=("sdpa",),
        num_generated=NUM_GENERATED,
    )
    with serving(engine) as url:
        return verify(url, str(model), request=request, logits=logits, observe=lambda _: None)


@pytest.mark.parametrize("configuration", ["float32+sdpa", "bfloat16+sdpa"])
def test_names_the_same_configuration_as_with_the_weights(
    scanned: Scanned, configuration: str
) -> None:
    runs = Configuration.parse(configuration)
    engine = Engine(folder=scanned.folder, configuration=runs)
    before = compared(engine, scanned.folder, None)
    after = compared(engine, scanned.described, scanned.saved)
    assert codes(before) == codes(after) == []
    assert before.like == after.like == (runs,)
    assert after.saved_weights
    assert after.num_prompts == before.num_prompts
    by_name = {row.configuration: row for row in after.distances}
    for row in before.distances:
        assert by_name[row.configuration].prefill == pytest.approx(row.prefill, rel=0.2, abs=1e-9)
    prompts = sum(len(answer.prompt_places) for answer in after.answers)
    assert after.num_positions >= prompts + after.num_prompts


def test_opens_no_weight_file(scanned: Scanned, tmp_path: Path) -> None:
    """Headers and tensors of this one cannot be read."""
    shutil.copytree(scanned.described, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"no header")
    served = compared(Engine(folder=scanned.folder), tmp_path / "broken", scanned.saved)
    assert served.like == (Configuration.parse("float32+sdpa"),)


PLANTS: dict[str, tuple[dict[str, Any], str]] = {
    "bos-twice": ({"num_bos": 2}, "PC801"),
    "seed": ({"change": another_seed}, "PC811"),
    "scaled": ({"process": times_1_1}, "PC812"),
    "sampled": ({"is_sampled": True}, "PC815"),
    "endless": ({"api": "greedy", "process": lambda row, _: row * float("nan")}, "PC818"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_planted_faults_are_named_without_the_weights(scanned: Scanned, name: str) -> None:
    engine, code = PLANTS[name]
    served = compared(Engine(folder=scanned.folder, **engine), scanned.described, scanned.saved)
    assert code in codes(served)


def runs_of(scanned: Scanned) -> SavedRuns:
    return SavedRuns.of(open_description(str(scanned.described)), scanned.saved)


def test_an_answer_is_compared_up_to_the_first_other_token(scanned: Scanned) -> None:
    runs = runs_of(scanned)
    probe = runs.saved.contents.probes[0]
    assert len(probe.generated) == NUM_GENERATED
    other = next(token for token in range(3, 300) if token != probe.generated[2])
    answer = Answer(
        name=probe.name,
        prompt=probe.ids,
        text=probe.text,
        generated=(*probe.generated[:2], other, other, other),
        generated_text="",
    )
    said = runs.say([answer])
    (cut,) = said.answers
    assert cut.generated == (*probe.generated[:2], other)
    assert said.not_compared == {probe.name: "2 tokens after the saved continuation"}
    float32 = said.readings[Configuration.parse("float32+sdpa")][probe.name]
    assert list(float32.rank[:2]) == [0, 0]
    assert float32.rank[2] > 0
    same = replace(answer, generated=probe.generated)
    assert runs.say([same]).not_compared == {}
    elsewhere = replace(answer, prompt=(*probe.ids, 5))
    assert "was not saved" in runs.say([elsewhere]).not_compared[probe.name]


def test_a_token_that_was_not_saved_is_at_most_as_likely_as_the_last_one(
    scanned: Scanned,
) -> None:
    runs = runs_of(scanned)
    probe = runs.saved.contents.probes[0]
    saved = runs.saved.readings[Configuration.parse("float32+sdpa")][probe.name]
    row = len(probe.ids) - 1
    unsaved = next(token for token in range(320) if token not in saved.top_ids[row])
    answer = Answer(
        name=probe.name, prompt=probe.ids, text=None, generated=(unsaved,), generated_text=""
    )
    reading = runs.say([answer]).readings[Configuration.parse("float32+sdpa")][probe.name]
    assert reading.at_token[0] == saved.top[row, -1]
    assert reading.rank[0] >= saved.top.shape[1] - 1


def test_a_run_that_is_nan_is_saved_and_explains_nothing(scanned: Scanned, tmp_path: Path) -> None:
    about, arrays = parts_of(scanned.file)
    index = [run["dtype"] for run in about["runs"]].index("bfloat16")
    for name in ("at_token", "lowest", "log_probabilities"):
        arrays[name] = arrays[name].copy()
        arrays[name][index] = np.nan
    (tmp_path / "nan").write_bytes(put_together(about, arrays))
    served = compared(
        Engine(folder=scanned.folder), scanned.described, read_logits(tmp_path / "nan")
    )
    assert served.like == (Configuration.parse("float32+sdpa"),)
    (row,) = (row for row in served.distances if row.dtype is Dtype.BFLOAT16)
    assert row.failure == "it is not finite on these prompts"
    assert codes(served) == []


def test_the_file_says_whose_it_is(scanned: Scanned) -> None:
    contents = scanned.saved.contents
    report = json.loads(scanned.report.read_text(encoding="utf-8"))
    assert contents.weights == report["checkpoint"]["digest"]
    assert contents.probes_digest == digest_of(contents.probes)
    assert contents.vocab_size == 320
    assert {str(run.configuration): run.verdict for run in contents.finished} == {
        "float32 + sdpa": "float32 + sdpa is safe",
        "bfloat16 + sdpa": "bfloat16 + sdpa is safe",
    }
    assert as_bytes(scanned.saved) == scanned.file.read_bytes()


# Files that were cut, damaged, or made to hurt.


def parts_of(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    arrays = safetensors.numpy.load(gzip.decompress(file.read_bytes()))
    about = msgspec.json.decode(arrays.pop("about").tobytes())
    return about, arrays


def put_together(about: object, arrays: dict[str, Any]) -> bytes:
    plain = np.frombuffer(msgspec.json.encode(about), dtype=np.uint8)
    return gzip.compress(safetensors.numpy.save({**arrays, "about": plain}))


def changed_about(name: str, value: object) -> Callable[[Path], bytes]:
    def change(file: Path) -> bytes:
        about, arrays = parts_of(file)
        return put_together({**about, name: value}, arrays)

    return change


def changed_array(name: str, change: Callable[[Any], Any]) -> Callable[[Path], bytes]:
    def changed(file: Path) -> bytes:
        about, arrays = parts_of(file)
        return put_together(about, {**arrays, name: change(arrays[name])})

    return changed


def other_ids(file: Path) -> bytes:
    about, arrays = parts_of(file)
    about["probes"][0]["ids"][0] = 7
    return put_together(about, arrays)


def lone_run(file: Path) -> bytes:
    """A run in bfloat16 without its float32 run."""
    about, arrays = parts_of(file)
    keep = [i for i, run in enumerate(about["runs"]) if run["dtype"] == "bfloat16"]
    about["runs"] = [about["runs"][i] for i in keep]
    return put_together(about, {name: array[keep] for name, array in arrays.items()})


BAD: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "empty": (lambda _: b"", "no saved log-probabilities"),
    "text": (lambda _: b"\x1b]0;title\x07 plain text", "Not a gzipped file"),
    "cut": (lambda file: file.read_bytes()[:5000], "ended before"),
    "damaged": (lambda file: file.read_bytes()[:-8] + b"12345678", "CRC check failed"),
    "pickle": (lambda _: gzip.compress(pickle.dumps({"about": 1})), "header"),
    "no-header": (lambda _: gzip.compress(b"\xff" * 64), "header"),
    "nothing-in-it": (lambda _: gzip.compress(safetensors.numpy.save({})), "about"),
    "no-object": (lambda file: put_together([1], parts_of(file)[1]), "Expected `object`"),
    "no-json": (
        lambda _: gzip.compress(
            safetensors.numpy.save({"about": np.full(9, 0xFF, dtype=np.uint8)})
        ),
        "malformed",
    ),
    "schema": (changed_about("schema", "precheck-logits/9"), "expected 'precheck-logits/1'"),
    "vocabulary": (changed_about("vocab_size", 100), "outside the vocabulary"),
    "probes": (other_ids, "not those of its digest"),
    "no-probes": (changed_about("probes", []), "expected"),
    "no-runs": (changed_about("runs", []), "expected"),
    "lone-run": (lone_run, "without its float32 run"),
    "dtype": (changed_array("ids", lambda array: array.astype(np.int64)), "arrays are"),
    "shape": (changed_array("rank", lambda array: array[:, :-1]), "rank is"),
    "flat": (changed_array("ids", lambda array: array.ravel()), "ids is"),
    "ids": (changed_array("ids", lambda array: array - 1000), "outside the vocabulary"),
    "above-1": (changed_array("at_token", lambda array: array + 100), "above 1"),
    "infinite": (changed_array("lowest", lambda array: array * -np.inf), "above 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_with_3_and_says_why(
    scanned: Scanned, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, words = BAD[name]
    bad = tmp_path / "bad.logits"
    bad.write_bytes(change(scanned.file))
    ended = run(capsys, "verify", "http://127.0.0.1:9", scanned.described, "--logits", bad)
    assert ended.code == ExitCode.INCOMPLETE
    assert words in ended.err
    assert "hint: write one: precheck scan MODEL --save-logits FILE" in ended.err
    assert "\x1b" not in ended.err


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = tmp_path / "bomb"
    bomb.write_bytes(gzip.compress(bytes(1 << 20)))
    monkeypatch.setattr(logits_file, "MOST_BYTES", 1 << 16)
    with pytest.raises(ReportError, match="more than 65,536 bytes"):
        read_logits(bomb)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_were_changed_are_an_error_of_ours(
    scanned: Scanned, tmp_path: Path, seed: int
) -> None:
    chosen = random.Random(seed)  # noqa: S311
    content = bytearray(gzip.decompress(scanned.file.read_bytes()))
    for _ in range(chosen.randint(1, 4)):
        content[chosen.randrange(2048 if seed % 2 else len(content))] = chosen.randrange(256)
    broken = tmp_path / "broken"
    broken.write_bytes(gzip.compress(bytes(content), compresslevel=1))
    with contextlib.suppress(ReportError):
        read_logits(broken)


@pytest.mark.parametrize("name", ["absent", "folder"])
def test_a_file_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path if name == "folder" else tmp_path / "absent"
    ended = run(capsys, "verify", "http://127.0.0.1:9", tmp_path, "--logits", path)
    assert ended.code == ExitCode.INCOMPLETE
    assert "cannot read saved log-probabilities" in ended.err


# What does not go together.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", "a text"], "--prompt with --logits"),
        (["--dtype", "float16", "--attn", "sdpa"], "--dtype and --attn with --logits"),
        (["--require", "float16+sdpa"], "float16 + sdpa is not among the configurations"),
    ],
)
def test_flags_that_choose_what_the_file_has_chosen(
    scanned: Scanned, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    ended = run(
        capsys, "verify", "http://127.0.0.1:9", scanned.described, "--logits", scanned.file,
        *arguments,
    )  # fmt: skip
    assert ended.code == ExitCode.USAGE
    assert words in ended.err


def test_a_report_on_other_weights_is_refused(
    scanned: Scanned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = json.loads(scanned.report.read_text(encoding="utf-8"))
    plain["checkpoint"]["digest"] = "0" * 64
    other = tmp_path / "other.json"
    other.write_text(json.dumps(plain), encoding="utf-8")
    ended = run(
        capsys, "verify", "http://127.0.0.1:9", scanned.described, "--logits", scanned.file,
        "--report", other,
    )  # fmt: skip
    assert ended.code == ExitCode.USAGE
    assert "of other weights than the report" in ended.err


@pytest.mark.parametrize("what", ["config", "tokenizer"])
def test_another_checkpoint_is_refused(
    scanned: Scanned, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(scanned.described, folder)
    if what == "config":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}))
    else:
        (folder / "tokenizer.json").unlink()
    with serving(Engine(folder=scanned.folder)) as url:
        ended = run(capsys, "verify", url, folder, "--logits", scanned.file)
    assert ended.code == ExitCode.USAGE
    assert ("another checkpoint" if what == "config" else "makes other tokens") in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--static"], "with static or stream"),
        (["--stream"], "with static or stream"),
        (["--save-logits", "absent/file"], "output folder does not exist"),
    ],
)
def test_nothing_is_scanned_where_nothing_can_be_saved(
    scanned: Scanned,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    ended = run(capsys, "scan", scanned.folder, "--save-logits", tmp_path / "file", *arguments)
    assert ended.code == ExitCode.USAGE
    assert words in ended.err
    assert not list(tmp_path.iterdir())


def test_a_model_that_continues_no_text_saves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_checkpoint(tiny("bert"), tmp_path / "bert", tokenizer=True)
    ended = run(capsys, "scan", folder, *QUICK, "--save-logits", tmp_path / "file")
    assert ended.code == ExitCode.INCOMPLETE
    assert "does not continue a text" in ended.err
    assert not (tmp_path / "file").exists()
