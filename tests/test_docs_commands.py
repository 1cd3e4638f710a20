"""What the documentation tells its reader to type, typed."""

from __future__ import annotations

import shlex
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

from precheck import cli
from precheck.measure import request
from tests.planted import FAULTS, planted_checkpoint
from tests.test_docs import PAGES, ROOT, commands

if TYPE_CHECKING:
    from pathlib import Path

TRANSLATION = ROOT / "README.zh.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that overflows in float16, and is scanned in a second."""
    (fault,) = (each for each in FAULTS if each.name == "qwen2-scores")
    return planted_checkpoint(fault, tmp_path_factory.mktemp("model"), tokenizer=True)


def typed(words: list[str], model: Path) -> list[str]:
    """The command on a model that is here, with one short batch."""
    known = dict.fromkeys(("MODEL", "ORG/NAME", "./checkpoint"), str(model))
    words = [known.get(word, word) for word in words[1:]]
    if words[0] == "hunt":
        return [*words, "--quick", "--most-tokens", "1000"]
    is_short = {"--static", "--prompt", "--quick"} & set(words)
    return [*words, *(["--quick"] if words[0] == "scan" and not is_short else [])]


@pytest.mark.parametrize(
    "page", [each for each in PAGES if each != TRANSLATION], ids=lambda page: page.name
)
def test_commands_run(
    page: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One after the other, in one folder, as a reader would."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("precheck.measure.capsule.write._breaks", lambda *_args, **_named: True)
    # the scan that a fix is chosen by has no flag for it
    monkeypatch.setattr("precheck.measure.request.Request", partial(request.Request, quick=True))
    for words in commands(page):
        if words[1:] in (["demo", "--scan"], ["env", "--selftest"]):
            continue  # they take long; tests/gallery scans them all, test_selftest.py tests itself
        if words[1] == "verify" or any(word.endswith((".gguf", ".logits")) for word in words):
            continue  # it needs a server, or a file; tests/served and test_gguf.py have them
        monkeypatch.setattr(sys, "argv", ["precheck", *typed(words, model)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr().err
        assert ended.value.code in {None, 0, 1}, f"{shlex.join(words)}: {said}"
        for baseline in tmp_path.glob("*.toml"):  # the reader is told to give reasons
            text = baseline.read_text(encoding="utf-8")
            baseline.write_text(text.replace('reason = ""', 'reason = "known"'), encoding="utf-8")
        for capsule in tmp_path.glob("capsule"):
            shutil.rmtree(capsule)


def test_the_translation_types_what_the_readme_does() -> None:
    prompt = "a prompt that fails"  # the one argument that is translated
    ours, theirs = (
        [[word for word in words if word.isascii() and word != prompt] for words in commands(page)]
        for page in (ROOT / "README.md", TRANSLATION)
    )
    assert theirs
    assert [words for words in theirs if words not in ours] == []
