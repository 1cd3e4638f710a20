"""Chat templates that take forever, all memory or the disk: the scan goes on without them."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from transformers import AutoTokenizer

from precheck.errors import ExitCode
from precheck.measure.probes import chat_template
from precheck.measure.probes.builtin import TextPrompt
from precheck.measure.probes.chat_template import ChatTemplate
from precheck.measure.probes.vocabulary import Vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from tests.shell import Shell

CHAT = [{"role": "user", "content": "Hello"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = (
    "{% set n = namespace(x='a' * 999999) %}"
    "{% for a in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}"
)
HOSTILE = {
    "two loops": (LOOPS, "takes more than"),
    "a loop that writes": (
        "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
        "returns 99,899,001 characters",
    ),
    "a string": ("{{ 'a' * 3000000000 }}", "memory limit"),
    "a string in pieces": (DOUBLED, ""),  # of time or of memory, whichever ends first
    "a list": ("{{ ([1] * 999999999) | length }}", "memory limit"),
    "a number": ("{{ (9 ** 999999999) % 7 }}", "takes more"),
    "a power of a message": ("{{ (messages | length + 8) ** 999999999 }}", "takes more"),
    "it raises": ("{{ raise_exception('no system role') }}", "fails: TemplateError: no system"),
    "no Jinja": ("{% for %}", "fails: TemplateSyntaxError"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "the chat template"),
}


@pytest.fixture
def tokenizer(healthy: Path) -> Any:
    return AutoTokenizer.from_pretrained(healthy)


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "SECONDS", 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_is_bounded(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template, says = HOSTILE[name]
    template = ChatTemplate()
    memory, limits = psutil.Process().memory_info().rss, resource.getrlimit(resource.RLIMIT_AS)
    began = time.monotonic()
    assert template.render(tokenizer, CHAT) is None
    assert template.problem is not None
    assert says in template.problem
    assert template.render(tokenizer, CHAT) is None  # at once
    assert time.monotonic() - began < 15
    assert psutil.Process().memory_info().rss - memory < 1 << 28
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert psutil.Process().children() == []


class Files:
    """Renders the names of the open files."""

    def apply_chat_template(self, *_args: Any, **_options: Any) -> str:
        names = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))  # noqa: PTH208
        return "\n".join(os.readlink(name) for name in names if os.path.islink(name))  # noqa: PTH114, PTH115


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_file_stays_open_in_it(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w"):
        text = ChatTemplate().render(Files(), CHAT)
    assert text is not None
    assert "pipe:" in text  # its answer
    assert str(tmp_path) not in text


def test_a_healthy_template_says_what_it_says_by_itself(tokenizer: Any) -> None:
    expected = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    found: list[str | None] = [ChatTemplate().render(tokenizer, CHAT)]
    thread = threading.Thread(target=lambda: found.append(ChatTemplate().render(tokenizer, CHAT)))
    thread.start()
    thread.join()
    assert found == [expected, expected]


def test_the_tokens_of_a_chat_are_those_of_its_text(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    vocabulary = Vocabulary(size=10**6, tokenizer=tokenizer)
    prompt = TextPrompt(name="chat", kind="chat", text="Hello")
    assert vocabulary.encode(prompt) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_scan_goes_on_without_the_template_and_says_so(shell: Shell, model: Path) -> None:
    (model / "chat_template.jinja").write_text(LOOPS)
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert "chat (the chat template takes more than 1 seconds)" in report.coverage.probes_not_run
    assert any(finding.code == "PC902" for finding in report.findings)
