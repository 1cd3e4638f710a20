"""The pytest plugin, in test suites of somebody else."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from _pytest.pytester import RunResult

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """Runs a suite with this plugin alone, in a process of its own."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for told_of_ci in ("CI", "BUILD_NUMBER"):  # where pytest repeats whole messages in its summary
        monkeypatch.delenv(told_of_ci, raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", ""))))

    def run(suite: str, *arguments: str) -> RunResult:
        pytester.makepyfile(suite)
        return pytester.runpytest_subprocess(
            "-p", "precheck.pytest_plugin", "--strict-markers", "-rA", *arguments, timeout=300
        )

    return run


def test_pytest_finds_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["pytest11"] == {"precheck": "precheck.pytest_plugin"}


def test_it_costs_nothing_where_it_is_not_used(run: Callable[..., RunResult]) -> None:
    ended = run(
        """
        import sys

        def test_nothing_of_it_is_imported():
            ours = {name for name in sys.modules if name.split(".")[0] == "precheck"}
            assert ours == {"precheck", "precheck.pytest_plugin", "precheck.version"}
            assert not {"torch", "transformers", "rich", "msgspec"} & set(sys.modules)
        """
    )
    ended.assert_outcomes(passed=1)


def test_the_mark_is_explained(run: Callable[..., RunResult]) -> None:
    ended = run("", "--markers")
    ended.stdout.fnmatch_lines(["@pytest.mark.precheck(*configurations, model=None,*"])


def test_a_checkpoint_passes_or_fails_in_what_is_required(
    run: Callable[..., RunResult], healthy: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known.toml"
    known.write_text('[[accept]]\ncode = "PC301"\nreason = "we use sdpa"\n', encoding="utf-8")
    ended = run(
        f"""
        import precheck
        import pytest

        OVERFLOWS = "demo:qwen2-eager"
        scans = []
        scan = precheck.scan
        precheck.scan = lambda *model, **named: scans.append(model) or scan(*model, **named)
        precheck.scan.__wrapped__ = scan  # inspect.signature looks here

        @pytest.mark.precheck(model={str(healthy)!r}, quick=True)
        def test_healthy(): ...

        @pytest.mark.precheck("float16+eager", model={str(healthy)!r}, quick=True)
        class TestOneScan:
            def test_first(self): ...
            def test_second(self, precheck_report):
                assert precheck_report.complete
                assert "float16 + eager" in [run.name for run in precheck_report.runs]

        @pytest.mark.precheck("fp16+sdpa", model=OVERFLOWS, quick=True)
        def test_sdpa(): ...

        @pytest.mark.precheck("fp16+eager", model=OVERFLOWS, quick=True)
        def test_eager():
            assert False, "this is never reached"

        @pytest.mark.precheck("fp16+eager", model=OVERFLOWS, quick=True, baseline={str(known)!r})
        def test_accepted(): ...

        def test_each_was_scanned_once():
            assert [model for (model,) in scans] == [{str(healthy)!r}, OVERFLOWS]
        """
    )
    ended.assert_outcomes(passed=6, failed=1)
    said = ended.stdout.str()
    assert "never reached" not in said
    ended.stdout.fnmatch_lines(
        [
            "FAIL: float16 + eager overflows in layer 3: *",
            "PC301: float16 + eager: overflow of the raw attention scores * modeling_qwen2.py:*",
            "*- Captured precheck call -*",
            "*float16*eager*overflow*layer 3*",
        ]
    )
    assert "\nPC201: " not in said, "it is about bfloat16, which is not required"
    assert said.count("Captured precheck call") == 1, "of a test that passes nothing is said"


def test_what_no_scan_measures_and_what_has_changed_is_scanned_again(
    run: Callable[..., RunResult], healthy: Path
) -> None:
    ended = run(
        f"""
        import json
        import shutil
        from pathlib import Path

        import pytest

        MODEL = "model"

        def test_copied():
            shutil.copytree({str(healthy)!r}, MODEL)

        @pytest.mark.precheck(model=MODEL, quick=True, dtypes=["float16"])
        def test_float16(precheck_report):
            assert "bfloat16 + eager" not in [run.name for run in precheck_report.runs]

        @pytest.mark.precheck("bfloat16+eager", model=MODEL, quick=True, dtypes=["float16"])
        def test_bfloat16(): ...

        def test_changed():
            config = Path(MODEL, "config.json")
            config.write_text(json.dumps(json.loads(config.read_text()) | {{"dtype": "float16"}}))

        @pytest.mark.precheck(model=MODEL, quick=True, dtypes=["float16"])
        def test_again(precheck_report):
            assert precheck_report.model.declared_dtype == "float16"
        """
    )
    ended.assert_outcomes(passed=5)


def test_a_live_model_is_scanned_where_a_fixture_gives_one(
    run: Callable[..., RunResult], healthy: Path
) -> None:
    ended = run(
        f"""
        import pytest
        from transformers import AutoModelForCausalLM

        @pytest.fixture
        def precheck_model():
            return AutoModelForCausalLM.from_pretrained({str(healthy)!r})

        def test_report(precheck_report):
            assert precheck_report.model.architecture == "Qwen2ForCausalLM"

        @pytest.mark.precheck("float16+sdpa", quick=True)
        def test_gate(precheck_model, precheck_report):
            assert {{str(run.dtype) for run in precheck_report.runs}} >= {{"float16", "float32"}}
        """
    )
    ended.assert_outcomes(passed=2)


def test_what_cannot_be_done_is_told_in_two_lines(run: Callable[..., RunResult]) -> None:
    ended = run(
        """
        import pytest

        def test_no_model(precheck_report): ...

        @pytest.mark.precheck("float16+sdpa", model="./nowhere")
        def test_no_checkpoint(): ...

        @pytest.mark.precheck("flaot16+sdpa", model="demo:qwen2-eager")
        def test_no_dtype(): ...

        @pytest.mark.precheck("float16+sdpa", model="demo:qwen2-eager", quik=True)
        def test_no_argument(): ...

        @pytest.mark.precheck("float16+sdpa", model="demo:qwen2-eager", fail_on="errors")
        def test_no_level(): ...
        """
    )
    ended.assert_outcomes(errors=5)
    ended.stdout.fnmatch_lines(
        [
            "precheck: no model to scan (expected *",
            "hint: @pytest.mark.precheck(*",
            "precheck: *nowhere*",
            "hint: *",
            "precheck: unknown dtype: 'flaot16' *",
            "hint: did you mean 'float16'? *",
            "precheck: unknown argument of the mark: 'quik' *",
            "hint: did you mean 'quick'? *",
            "precheck: unknown fail_on: 'errors' *",
            "hint: did you mean 'error'? *",
        ]
    )
    assert "Traceback" not in ended.stdout.str()
    assert "pytest_plugin.py" not in ended.stdout.str()


def test_an_incomplete_scan_is_no_pass(run: Callable[..., RunResult], healthy: Path) -> None:
    ended = run(
        f"""
        from dataclasses import replace

        import precheck
        import pytest

        scan = precheck.scan

        @pytest.fixture(autouse=True)
        def stopped(monkeypatch):
            def scan_in_part(model, *, require=(), quick=False):
                report = scan(model, require=require, quick=quick)
                return replace(report, complete=False, incomplete_reason="stopped")
            monkeypatch.setattr(precheck, "scan", scan_in_part)

        @pytest.mark.precheck("float16+sdpa", model={str(healthy)!r}, quick=True)
        def test_it(): ...
        """
    )
    ended.assert_outcomes(failed=1)
    ended.stdout.fnmatch_lines(
        ["INCOMPLETE: stopped before all probes were done, no verdict (stopped)"]
    )


def test_a_watched_model_fails_where_it_breaks(run: Callable[..., RunResult]) -> None:
    ended = run(
        """
        import pytest
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from precheck.checkpoint.gallery import GALLERY

        @pytest.fixture(scope="module")
        def folder(tmp_path_factory):
            folder = tmp_path_factory.mktemp("qwen2-eager")
            GALLERY["qwen2-eager"].build(folder)
            return folder

        def loaded(folder, attn_implementation):
            return AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float16, attn_implementation=attn_implementation
            ).eval()

        def run(folder, watch, attn_implementation, *, do_sample=False):
            inputs = AutoTokenizer.from_pretrained(folder)("Hello", return_tensors="pt")
            model = loaded(folder, attn_implementation)
            with watch(model) as watched:
                model.generate(**inputs, max_new_tokens=3, do_sample=do_sample)
            return watched

        def test_healthy(folder, precheck_watch):
            assert run(folder, precheck_watch, "sdpa").num_forwards == 3

        def test_broken(folder, precheck_watch):
            run(folder, precheck_watch, "eager")

        def test_sampled(folder, precheck_watch):
            run(folder, precheck_watch, "eager", do_sample=True)

        def test_another_error(folder, precheck_watch):
            with pytest.raises(ZeroDivisionError), precheck_watch(loaded(folder, "sdpa")):
                1 / 0
        """
    )
    ended.assert_outcomes(passed=2, failed=2)
    said = ended.stdout.str()
    ended.stdout.fnmatch_lines(
        [
            "overflow of the raw attention scores * in model.layers.3.self_attn",
            "  where      model.layers.3.self_attn",
            "  operation  aten.bmm at modeling_qwen2.py:*",
            "  code       attn_weights = torch.matmul(query, key_states*",
            "  size       * elements not finite; the maximum of float16 is 65,504",
            "  when       forward 0 (0 is the prompt)",
        ]
    )
    assert said.count("  operation  aten.bmm at modeling_qwen2.py:") == 2
