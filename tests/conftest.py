"""What holds for every test: no network, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import jsonschema
import pytest

from precheck.records.report import Report
from precheck.signals import ENDING
from tests.pinned import installed, skip_pinned
from tests.slow import mark_slow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.shell import Shell

# Before anything imports huggingface_hub, which reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

# Before torch is imported: where tests run side by side, threads of each would get in all others'
# way, and the models here are too small for them. `make test-processors` tries two.
os.environ["OMP_NUM_THREADS"] = os.environ.get("PRECHECK_TEST_THREADS", "1")

_GRACE_SECONDS = 10.0
"""How long a thread pool may take to end after the test that used it."""


@pytest.hookimpl(tryfirst=True)  # before ``-m`` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With other libraries than those of constraints.txt, what is true of those is not."""
    skip_pinned(items, libraries=installed())
    mark_slow(items)


@pytest.fixture(autouse=True)
def signals_stay_as_they_are() -> Iterator[None]:
    """The command line takes Ctrl-C, SIGTERM and SIGHUP for one."""
    before = {each: signal.getsignal(each) for each in ENDING}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def ctrl_c() -> None:
    """A shell that runs the tests in the background has Ctrl-C ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def no_progress_bars() -> Iterator[None]:
    """Saving a model shows one, and its monitor thread would outlive the first test."""
    from transformers.utils import logging  # noqa: PLC0415  not before the environment is set

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(autouse=True, scope="session")
def processor() -> Iterator[None]:
    """What precheck is told of it: nothing, on every processor, or what PRECHECK_TEST_CPU names."""
    from tests.processors import told  # noqa: PLC0415  it imports torch

    with told(os.environ.get("PRECHECK_TEST_CPU", "nothing")):
        yield


@pytest.fixture(autouse=True, scope="session")
def near() -> Iterator[None]:
    """No text near the context: it would take as long as all other probes of a tiny model."""
    from precheck.measure.probes import context  # noqa: PLC0415  it imports torch

    with mock.patch.object(context, "MOST_TOKENS", 0):
        yield


@pytest.fixture
def far() -> Iterator[None]:
    """For what shows far from the first token alone: a text as long as a user's scan has."""
    from precheck.measure.probes import context  # noqa: PLC0415  it imports torch

    with mock.patch.object(context, "MOST_TOKENS", 2048):
        yield


@pytest.fixture
def native() -> Iterator[None]:
    """For a run that is compared bit for bit with a plain one: no processor lacks anything."""
    from tests.processors import told  # noqa: PLC0415  it imports torch

    with told("nothing"):
        yield


@pytest.fixture(autouse=True, scope="session")
def every_report_keeps_the_schema() -> Iterator[None]:
    """Whatever report a test produces is valid by the schema that is published."""
    published = Path(__file__).parents[1] / "docs" / "report.schema.json"
    valid = jsonschema.Draft202012Validator(json.loads(published.read_text(encoding="utf-8")))

    def checked(**fields: Any) -> Report:
        report = Report(**fields)
        valid.validate(json.loads(json.dumps(report.to_dict(), allow_nan=False)))
        return report

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("precheck.judge.report.Report", checked)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a dispatch mode, a global hook or a changed setting."""
    threads = set(threading.enumerate())
    settings = _torch_settings()
    yield
    deadline = time.monotonic() + _GRACE_SECONDS
    for thread in set(threading.enumerate()) - threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert set(threading.enumerate()) - threads == set()
    if settings is not None:  # else torch was not imported yet, so there is nothing to compare
        assert _torch_settings() == settings
    assert _watchers() == []


def _torch_settings() -> dict[str, object] | None:
    """The settings of torch that a scan touches; None without torch, so that it is not imported."""
    if "torch" not in sys.modules:
        return None
    import torch  # noqa: PLC0415  only if the test did

    return {
        "grad enabled": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "matmul TF32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn TF32": torch.backends.cudnn.allow_tf32,
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _watchers() -> list[object]:
    """Everything that would see the operations or modules of the next test."""
    if "torch" not in sys.modules:
        return []
    # Only if the test imported torch.
    from torch.nn.modules import module  # noqa: PLC0415
    from torch.overrides import _get_current_function_mode_stack  # noqa: PLC0415
    from torch.utils._python_dispatch import (  # noqa: PLC0415
        _get_current_dispatch_mode_stack,
    )

    return [
        *_get_current_dispatch_mode_stack(),
        *_get_current_function_mode_stack(),
        *module._global_forward_pre_hooks.values(),  # noqa: SLF001  torch has no public list
        *module._global_forward_hooks.values(),  # noqa: SLF001
    ]


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint without a fault; it is copied before anything is done to it."""
    from tests.tiny_models import save_checkpoint, tiny  # noqa: PLC0415  it imports torch

    folder = tmp_path_factory.mktemp("healthy")
    return save_checkpoint(tiny("qwen2", num_layers=2), folder, tokenizer=True)


@pytest.fixture
def shell(
    tmp_path: Path,
    healthy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Shell]:
    """A shell in a folder that holds a copy of the healthy checkpoint, called ``model``."""
    from tests.shell import Shell  # noqa: PLC0415  it imports transformers

    folder, temporary = tmp_path / "here", tmp_path / "temporary"
    shutil.copytree(healthy, folder / "model")
    temporary.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield Shell(folder, monkeypatch, capfd)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def model(shell: Shell) -> Path:
    """The copy of the healthy checkpoint, for a test to break."""
    return shell.folder / "model"
