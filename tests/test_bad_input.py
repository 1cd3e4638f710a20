"""What a person does wrong or is given broken: the message, the exit code, and no traces.

Every case goes through the real command line on a real checkpoint. ``Shell`` checks what holds for
all of them: no traceback, one line for the error and one for the hint, nothing on stdout when
nothing was measured, and no file that was not asked for.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError
from transformers.models.qwen2 import modeling_qwen2

from precheck.checkpoint import checkpoint_audit, source
from precheck.checkpoint.weights import Weights
from precheck.commands import terminal
from precheck.errors import ExitCode
from precheck.measure import memory_budget
from precheck.records.finding import Severity, Verdict
from precheck.records.mechanism import Mechanism
from precheck.records.progress import Announcement, Step
from precheck.records.report import Report
from tests.shell import change_config, change_weights
from tests.tiny_models import PAD, VOCAB_SIZE, architectures, save_checkpoint, tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from precheck.records.finding import Finding
    from precheck.records.report import Run
    from tests.shell import Shell

# The HTTP library that huggingface_hub is built on.
transport = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])

UP = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
ESCAPE = "\x1b[31m"
NAMES = ["[red]bold[blink]", f"{ESCAPE}red", "two\nlines", "turned\u202earound"]


def set_weight(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP][0, 0] = value

    return change


def finding(report: Report, code: str) -> Finding:
    (found,) = (each for each in report.findings if each.code == code)
    return found


def run_of(report: Report, dtype: str, attn_implementation: str) -> Run:
    (found,) = (
        run
        for run in report.runs
        if (run.dtype, run.requested_attn_implementation) == (dtype, attn_implementation)
    )
    return found


def test_the_healthy_checkpoint_is_safe_and_leaves_nothing(shell: Shell) -> None:
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


# Where the model is


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "two words", "", *NAMES])
def test_a_path_that_does_not_exist(shell: Shell, name: str) -> None:
    ended = shell.refuses(name, code=ExitCode.INCOMPLETE, says="no such folder", hint="Hub id")
    assert repr(name) in ended.error


def test_a_folder_without_config(shell: Shell, model: Path) -> None:
    (model / "config.json").unlink()
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="no config.json", hint="save_pretrained")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"model_type": ', "broken 'config.json'"),
        (b"\xff\xfe\x00", "broken 'config.json'"),
        (b"[]", "a JSON list (expected an object)"),
        (b'{"model_type": "qwen2", "hidden_size": "wide"}', "'hidden_size' expected int, got str"),
        (b'{"model_type": "qwen2", "dtype": "float3"}', "float3"),
        (b"{}", "has no model_type"),
        (b'{"model_type": "qwen99"}', "does not know the model_type 'qwen99'"),
        (b'{"model_type": "qwen2", "architectures": [5]}', "architectures is [5]"),
        (b'{"model_type": "qwen2", "architectures": [null]}', "architectures is [None]"),
        (b'{"model_type": "qwen2", "architectures": "x"}', "architectures is 'x'"),
        (b'{"model_type": "qwen2", "architectures": {}}', "architectures is {}"),
        (b'{"model_type": "qwen2", "architectures": 5}', "architectures is 5"),
    ],
)
def test_a_broken_config(shell: Shell, model: Path, content: bytes, says: str) -> None:
    (model / "config.json").write_bytes(content)
    ended = shell.refuses("model", code=ExitCode.INCOMPLETE, says=says, hint="")
    assert ended.hint


def test_a_config_that_the_model_class_does_not_take(shell: Shell, model: Path) -> None:
    change_config(model, hidden_act="nothing")
    shell.refuses(
        "model", code=ExitCode.INCOMPLETE, says="KeyError: 'nothing'", hint="transformers"
    )


@pytest.mark.parametrize("kept", [0, 7, 100, 0.5, 0.999], ids="kept={}".format)
def test_truncated_weights(shell: Shell, model: Path, kept: float) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept if kept >= 1 else kept * len(whole))])
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="truncated or corrupt", hint="download")


def test_corrupt_weights(shell: Shell, model: Path) -> None:
    file = model / "model.safetensors"
    whole = file.read_bytes()
    for broken in (b"garbage" * 100, whole[:8] + b"x" + whole[9:], whole + b"more"):
        file.write_bytes(broken)
        shell.refuses(
            "model", code=ExitCode.INCOMPLETE, says="truncated or corrupt", hint="download"
        )


def add_to_header(file: Path, entry: dict[str, Any]) -> None:
    """A tensor named ``extra`` without bytes; safetensors itself would not write it."""
    whole = file.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    end = len(whole) - 8 - length
    header["extra"] = {**entry, "data_offsets": [end, end]}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"dtype": "F32", "shape": [2**63, 0]}, "'extra' in"),
        ({"dtype": "F32", "shape": [0, 2**64 - 1]}, "'extra' in"),
        ({"dtype": "F32", "shape": [2**64, 0]}, "truncated or corrupt"),
        ({"dtype": "F32", "shape": [-1, 0]}, "truncated or corrupt"),
        ({"dtype": "F4", "shape": [0]}, "in a dtype that torch"),
        ({"dtype": "F6_E2M3", "shape": [0]}, "in a dtype that torch"),
        ({"dtype": "F7", "shape": [0]}, "truncated or corrupt"),
    ],
)
@pytest.mark.parametrize("mode", ["--quick", "--static"])
def test_a_header_that_torch_cannot_follow(
    shell: Shell, model: Path, entry: dict[str, Any], says: str, mode: str
) -> None:
    add_to_header(model / "model.safetensors", entry)
    shell.refuses("model", mode, code=ExitCode.INCOMPLETE, says=says, hint="")


def test_a_shard_that_the_index_names_and_that_is_missing(shell: Shell, model: Path) -> None:
    (model / "model.safetensors").unlink()
    tiny("qwen2", num_layers=2).save_pretrained(model, max_shard_size="150KB")
    shard = sorted(model.glob("*.safetensors"))[1]
    shard.unlink()
    ended = shell.refuses("model", code=ExitCode.INCOMPLETE, says="shards", hint="copy these files")
    assert shard.name in ended.error


def test_no_weights_at_all(shell: Shell, model: Path) -> None:
    (model / "model.safetensors").unlink()
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="no weights", hint="model.safetensors")


class RunsCode:
    """What a malicious pickle holds."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("was-run"),)


def test_a_pickle_is_read_only_with_permission_and_runs_nothing(shell: Shell, model: Path) -> None:
    (model / "model.safetensors").unlink()
    pickled = model / "pytorch_model.bin"
    torch.save(tiny("qwen2", num_layers=2).state_dict(), pickled)
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="pickle", hint="--allow-pickle")
    shell.scans("model", "--allow-pickle", code=ExitCode.GATE_HOLDS)
    torch.save({"weight": RunsCode()}, pickled)
    shell.refuses(
        *("model", "--allow-pickle"),
        code=ExitCode.INCOMPLETE,
        says="not a plain dictionary of tensors",
        hint="save_pretrained",
    )


def test_the_hub_cannot_be_reached(shell: Shell) -> None:
    ended = shell.refuses(
        "nobody/nothing",
        code=ExitCode.INCOMPLETE,
        says="the Hub cannot be reached",
        hint="HF_HUB_OFFLINE",
    )
    assert "'nobody/nothing'" in ended.error


@pytest.mark.parametrize(
    ("kind", "status", "says", "hint"),
    [
        (GatedRepoError, 403, "gated Hub repository 'owner/name'", "hf auth login"),
        (RepositoryNotFoundError, 401, "no folder or Hub repository of that name", "hf auth login"),
        (HfHubHTTPError, 503, "the Hub refused", "try again later"),
    ],
)
def test_the_hub_refuses(
    shell: Shell, kind: Callable[..., Exception], status: int, says: str, hint: str
) -> None:
    request = transport.Request("GET", "https://huggingface.co/api/models/owner/name")
    error = kind(f"{ESCAPE}no", response=transport.Response(status, request=request))

    def refuse(*_arguments: object, **_options: object) -> None:
        raise error

    shell.monkeypatch.setattr(huggingface_hub, "model_info", refuse)
    shell.refuses("owner/name", code=ExitCode.INCOMPLETE, says=says, hint=hint)


def test_custom_code_needs_permission(shell: Shell, model: Path) -> None:
    change_config(
        model,
        auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"},
        architectures=["OwnForCausalLM"],
    )
    (model / "modeling_own.py").write_text("from pathlib import Path; Path('was-run').touch()")
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="custom code", hint="--trust-remote-code")


def test_an_architecture_without_a_repeated_block(shell: Shell, model: Path) -> None:
    change_config(model, num_hidden_layers=0, layer_types=[], max_window_layers=0)
    shell.refuses(
        "model",
        code=ExitCode.INCOMPLETE,
        says="no decoder layers found in Qwen2ForCausalLM",
        hint="nn.ModuleList",
    )


@pytest.mark.parametrize("name", ["modle", "./modle", "models"])
def test_a_folder_of_nearly_that_name_is_offered(shell: Shell, model: Path, name: str) -> None:
    assert model.name == "model"
    shell.refuses(name, code=ExitCode.INCOMPLETE, says="folder", hint="did you mean 'model'? check")


# What is asked for


@pytest.mark.parametrize(
    ("arguments", "says", "hint"),
    [
        (["--dtype", "float8"], "unknown dtype: 'float8'", "fp16"),
        (["--dtype", "flaot16"], "unknown dtype: 'flaot16'", "did you mean 'float16'?"),
        (["--attn", "spda"], "unknown attention", "did you mean 'sdpa'?"),
        (["--require", "float16+spda"], "unknown attention", "did you mean 'sdpa'?"),
        (["--device", "cdua"], "unknown device: 'cdua'", "did you mean 'cuda'?"),
        (["-o", ".jsno"], "unknown report format", "suffix"),
        (["--dtype", ""], "empty name in --dtype", "remove"),
        (["--attn", "flash"], "unknown attention implementation: 'flash'", "owner/name"),
        (["--attn", ""], "empty name in --attn", "remove"),
        (["--attn", "someone/kernel"], "attention kernel from the Hub", "--trust-remote-code"),
        (["--require", "float16+flash"], "unknown attention implementation", "owner/name"),
        (["--require", "float16+"], "not a configuration", "float16+sdpa"),
        (["--require", "float16,sdpa"], "not a configuration", "float16+sdpa"),
        (["--for", "vlm"], "unknown engine: 'vlm'", "did you mean 'vllm'?"),
        (["--format", "jsn"], "unknown format: 'jsn'", "did you mean 'json'?"),
        (["--fail-on", "warnin"], "unknown severity", "did you mean 'warning'?"),
        (["--device", "cuda:99"], "device not present: 'cuda:99'", "cpu"),
        (["--device", "meta"], "device not present: 'meta'", "cpu"),
        (["--gpu", "T5"], "unknown GPU: 'T5'", "--gpu sm_75"),
        (["--revision", "main"], "revision 'main' of a local folder", "--revision"),
        (["--prompt", ""], "empty prompt", "--prompt"),
        (["--prompt", "\udcff"], "prompt 1 is not Unicode text", "UTF-8"),
        (["--prompts", "absent.txt"], "cannot read prompts file: 'absent.txt'", "spelling"),
        (["-o", "report.docx"], "unknown report format", "suffix"),
        (["-o", "absent/report.json"], "output folder does not exist", "mkdir -p"),
        (["-o", "model/config.json/report.json"], "not a folder", "another path"),
        (["-o", "loop/report.json"], "cannot write report: 'loop/report.json'", "another path"),
        (["-o", f"{'long' * 99}.json"], "File name too long", "another path"),
        (["-o", "model"], "unknown report format", "suffix"),
    ],
    ids=lambda each: "=".join(each)[:40] if isinstance(each, list) else "",
)
def test_what_cannot_be_used(shell: Shell, arguments: list[str], says: str, hint: str) -> None:
    (shell.folder / "loop").symlink_to("loop")
    shell.refuses("model", *arguments, code=ExitCode.USAGE, says=says, hint=hint)


def test_an_unknown_device_says_what_there_is(shell: Shell) -> None:
    ended = shell("model", "--device", "tpu")
    assert (ended.code, ended.out, ended.left) == (ExitCode.USAGE, "", ())
    assert ended.error == "unknown device: 'tpu' (expected auto, cpu, cuda, cuda:0, mps)"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("p.txt", b"", "prompts file is empty"),
        ("p.txt", b"\n \n", "prompts file is empty"),
        ("p.txt", b"caf\xe9", "prompts file is not UTF-8: 'p.txt', byte 3"),
        ("p.txt", b"word " * 2000, "prompt 1 has"),
        ("p.txt", b"short\n" + b"word " * 2000, "prompt 2 has"),
        ("p.jsonl", b'{"text": "\\ud800"}', "prompt 1 is not Unicode text"),
        ("p.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("p.jsonl", b'{"token_ids": [' + b"9" * 5000 + b"]}", "line 1: not JSON"),
        ("p.jsonl", b'{"token_ids": [320]}', "prompt 1 has token ids outside 0 to 319"),
    ],
)
def test_a_prompts_file_that_cannot_be_used(
    shell: Shell, name: str, content: bytes, says: str
) -> None:
    (shell.folder / name).write_bytes(content)
    ended = shell.refuses("model", "--prompts", name, code=ExitCode.USAGE, says=says, hint="")
    assert ended.hint


def test_a_prompt_longer_than_the_context_says_how_long_that_is(shell: Shell, model: Path) -> None:
    change_config(model, max_position_embeddings=16)
    shell.refuses(
        *("model", "--prompt", "many words " * 20),
        code=ExitCode.USAGE,
        says="the model's context is 16",
        hint="shorten",
    )


@pytest.mark.parametrize(
    ("name", "attn_implementation"), architectures([("gemma2", "sdpa"), ("bloom", "sdpa")])
)
def test_attention_that_the_model_does_not_have_fails_alone(
    shell: Shell, name: str, attn_implementation: str
) -> None:
    save_checkpoint(tiny(name, num_layers=2), shell.folder / name, tokenizer=True)
    report = shell.scans(name, "--attn", f"{attn_implementation},eager", code=ExitCode.GATE_HOLDS)
    for run in report.runs:
        fails = run.requested_attn_implementation == attn_implementation
        assert run.verdict is (Verdict.FAILED if fails else Verdict.SAFE)
        assert ("does not support" in (run.reason or "")) == fails
    message = finding(report, "PC402").message
    assert f"float16 + {attn_implementation}" in message
    assert "issues" not in message  # where to ask for it is in the run's failure, not in the table


def test_attention_that_is_not_installed_fails_alone(shell: Shell) -> None:
    report = shell.scans("model", "--attn", "flash_attention_2,eager", code=ExitCode.GATE_HOLDS)
    failed = {run.requested_attn_implementation for run in report.runs if run.failure}
    assert failed == {"flash_attention_2"}
    assert "installed" in finding(report, "PC402").message
    assert report.recommendation
    assert report.recommendation.attn_implementation != "flash_attention_2"


def test_attention_that_cannot_be_had_at_all_leaves_the_gate_configuration(shell: Shell) -> None:
    report = shell.scans("model", "--attn", "flash_attention_2", code=ExitCode.GATE_HOLDS)
    assert run_of(report, "float32", "sdpa").verdict is Verdict.SAFE
    assert run_of(report, "float16", "flash_attention_2").verdict is Verdict.FAILED


def test_a_required_configuration_that_fails_fails_the_gate(shell: Shell) -> None:
    ended = shell("model", "--quick", "--require", "fp16+flash_attention_2")
    assert ended.code == ExitCode.GATE_FAILS
    assert "FAIL: float16 + flash_attention_2 could not be run: " in ended.err
    report = shell.scans(
        *("model", "--require", "fp16+flash_attention_2", "--fail-on", "never"),
        code=ExitCode.GATE_HOLDS,
    )
    assert run_of(report, "float16", "flash_attention_2").verdict is Verdict.FAILED


@pytest.mark.parametrize(
    ("require", "fail_on", "code"),
    [
        ("float16+eager", "error", ExitCode.GATE_FAILS),
        ("float16+eager", "warning", ExitCode.GATE_FAILS),
        ("float16+eager", "never", ExitCode.GATE_HOLDS),
        ("bfloat16+eager", "error", ExitCode.GATE_HOLDS),
    ],
)
def test_the_gate_rejects_what_was_required_and_overflows(
    shell: Shell, model: Path, require: str, fail_on: str, code: ExitCode
) -> None:
    change_weights(model, set_weight(70_000.0))
    shell.scans("model", "--require", require, "--fail-on", fail_on, code=code)


@pytest.mark.parametrize("gpu", ["tesla t4", "sm_90", "cpu"])
def test_advises_for_a_gpu_by_any_of_its_names(shell: Shell, gpu: str) -> None:
    report = shell.scans("model", "--gpu", gpu, "--dtype", "fp16", code=ExitCode.GATE_HOLDS)
    assert report.recommendation
    assert report.other_recommendations == ()


def test_prompts_of_different_length_run_apart(shell: Shell) -> None:
    report = shell.scans(
        *("model", "--prompt", "short", "--prompt", "a text that is rather longer"),
        code=ExitCode.GATE_HOLDS,
    )
    assert [probe.name for probe in report.probes] == ["prompt_1", "prompt_2"]
    assert len({probe.num_tokens for probe in report.probes}) == 2


# What the weights are


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(shell: Shell, model: Path, value: float) -> None:
    change_weights(model, set_weight(value))
    report = shell.scans("model", code=ExitCode.GATE_FAILS)
    assert [(each.name, each.num_elements) for each in report.checkpoint.nonfinite] == [(UP, 1)]
    stored = finding(report, "PC504")
    assert (stored.severity, stored.module) == (Severity.ERROR, UP)
    assert UP in stored.message
    assert finding(report, "PC113").severity is Severity.ERROR
    assert Verdict.SAFE not in {run.verdict for run in report.runs}
    assert report.recommendation
    assert report.recommendation.dtype is None


def scale_gate_and_up(tensors: dict[str, torch.Tensor]) -> None:
    for name in (GATE, UP):
        tensors[name] *= 1e30


def test_a_model_that_is_broken_in_float32(shell: Shell, model: Path) -> None:
    change_weights(model, scale_gate_and_up)
    report = shell.scans("model", code=ExitCode.GATE_FAILS)
    assert report.checkpoint.nonfinite == ()
    broken = finding(report, "PC113")
    assert "broken in float32" in broken.message
    assert broken.module == "model.layers.0.mlp"
    for run in report.runs:
        is_reference = run.dtype == "float32"
        assert run.verdict is (Verdict.OVERFLOW if is_reference else Verdict.FAILED)
        assert "not finite" in (run.reason or "")
    ended = shell("model", "--quick")
    assert "BROKEN: The model is broken in float32" in ended.out
    assert "FAIL: float32 + sdpa is not finite" in ended.err


def test_a_product_that_overflows_float32_is_not_called_a_mask(shell: Shell, model: Path) -> None:
    change_weights(model, scale_gate_and_up)
    overflow = run_of(shell.scans("model", code=ExitCode.GATE_FAILS), "float32", "sdpa")
    assert overflow.first_overflow
    assert overflow.first_overflow.mechanism is Mechanism.GATED_PRODUCT


def test_a_parameter_that_is_missing(shell: Shell, model: Path) -> None:
    def drop(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[UP]

    change_weights(model, drop)
    reports = [shell.scans("model", code=ExitCode.GATE_FAILS) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].checkpoint.missing == (UP,)
    found = finding(reports[0], "PC501")
    assert (found.severity, found.module) == (Severity.ERROR, UP)
    assert "random" in found.message
    assert f"({UP})" in shell("model", "--quick").err


def test_a_parameter_of_another_shape(shell: Shell, model: Path) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        tensors[UP] = tensors[UP][:5].clone()

    change_weights(model, cut)
    reports = [shell.scans("model", code=ExitCode.GATE_FAILS) for _ in range(2)]
    assert reports[0] == reports[1]
    assert finding(reports[0], "PC502").module == UP


def test_a_tensor_that_the_model_has_no_place_for(shell: Shell, model: Path) -> None:
    name = f"{ESCAPE}extra"
    change_weights(model, lambda tensors: tensors.update({name: torch.ones(3)}))
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert report.checkpoint.unexpected == (name,)
    assert finding(report, "PC505").severity is Severity.NOTE
    assert r"\x1b[31mextra" in shell("model", "--quick", "-v").out


def test_a_name_in_the_checkpoint_cannot_steer_the_terminal(shell: Shell, model: Path) -> None:
    change_weights(
        model, lambda tensors: tensors.update({f"{ESCAPE}\nerror: no": torch.tensor([torch.inf])})
    )
    ended = shell("model", "--quick")
    assert ended.code == ExitCode.GATE_FAILS
    assert r"FAIL: Stored weights are NaN or infinite: 1 in 1 tensor (\x1b[31m\n" in ended.err


def test_a_weight_outside_float16(shell: Shell, model: Path) -> None:
    change_weights(model, set_weight(70_000.0))
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    for attn_implementation in ("sdpa", "eager"):
        run = run_of(report, "float16", attn_implementation)
        assert run.verdict is Verdict.OVERFLOW
        assert run.first_overflow
        assert run.first_overflow.mechanism is Mechanism.WEIGHTS
        assert run.first_overflow.module == UP.removesuffix(".weight")
        assert run_of(report, "bfloat16", attn_implementation).first_overflow is None
    assert [each.name for each in report.checkpoint.out_of_float16_range] == [UP]
    assert "70,000" in finding(report, "PC503").message


# What belongs to the model


def remove_tokenizer(folder: Path) -> None:
    for file in (*folder.glob("tokenizer*"), folder / "chat_template.jinja"):
        file.unlink()


def break_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def shrink_vocabulary(folder: Path, *, size: int = 300) -> None:
    def cut(tensors: dict[str, torch.Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:size].clone()

    change_weights(folder, cut)
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    change_config(folder, vocab_size=size, **special)


@pytest.mark.parametrize("change", [remove_tokenizer, break_tokenizer, shrink_vocabulary])
def test_a_tokenizer_that_cannot_be_used_is_done_without(
    shell: Shell, model: Path, change: Callable[[Path], None]
) -> None:
    change(model)
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    assert {probe.kind for probe in report.probes} == {"token_ids"}
    assert "token" in finding(report, "PC902").message
    shell.refuses(
        *("model", "--prompt", "hello"),
        code=ExitCode.USAGE,
        says="prompt 1 is text, but",
        hint="token ids",
    )
    (shell.folder / "ids.jsonl").write_text('{"token_ids": [1, 2, 3]}')
    shell.scans("model", "--prompts", "ids.jsonl", code=ExitCode.GATE_HOLDS)


TEMPLATES: Mapping[str, str] = {
    "raises": "{{ raise_exception('no system prompt, no user prompt') }}",
    "broken": "{{ nothing(",
    "empty": "",
}


@pytest.mark.parametrize(
    "template",
    list(TEMPLATES),
)
def test_a_chat_template_that_fails_is_done_without(
    shell: Shell, model: Path, template: str
) -> None:
    (model / "chat_template.jinja").write_text(TEMPLATES[template])
    ended = shell("model", "--format", "json")
    assert ended.code == ExitCode.GATE_HOLDS
    assert any("chat" in each for each in ended.report.coverage.probes_not_run)


def test_a_special_token_beyond_the_embedding_is_not_the_models_fault(
    shell: Shell, model: Path
) -> None:
    shrink_vocabulary(model, size=PAD)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    (model / "chat_template.jinja").write_text("<|endoftext|>{{ messages[0]['content'] }}")
    ended = shell("model", "--format", "json")
    assert ended.code == ExitCode.GATE_HOLDS
    assert Verdict.FAILED not in {run.verdict for run in ended.report.runs}


@pytest.mark.parametrize("length", [16, 1])
def test_a_very_short_context(shell: Shell, model: Path, length: int) -> None:
    change_config(model, max_position_embeddings=length)
    ended = shell("model", "--format", "json")
    assert ended.code == ExitCode.GATE_HOLDS
    assert ended.report.coverage.longest_probe_tokens == length


@pytest.mark.parametrize("name", ["qwen2", "gpt2", "bert"])
def test_a_model_of_one_layer(shell: Shell, name: str) -> None:
    save_checkpoint(tiny(name, num_layers=1), shell.folder / "one", tokenizer=True)
    report = shell.scans("one", code=ExitCode.GATE_HOLDS)
    assert report.model.num_decoder_layers == 1
    assert [len(run.layers) for run in report.runs] == [1] * len(report.runs)


def test_a_model_without_token_ids(shell: Shell) -> None:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=16,
    )
    images = transformers.ViTForImageClassification(config)
    images.save_pretrained("images")
    shell.refuses("images", code=ExitCode.INCOMPLETE, says="not token ids", hint="images")


def test_a_model_of_two_towers_is_refused_or_scanned(shell: Shell) -> None:
    tower = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    config = transformers.CLIPConfig(
        text_config={**tower, "vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1},
        vision_config={**tower, "image_size": 32, "patch_size": 16},
    )
    towers = transformers.CLIPModel(config)
    towers.save_pretrained("towers")
    assert shell("towers", "--quick").code != ExitCode.BUG


@pytest.mark.parametrize("name", NAMES)
def test_names_and_prompts_are_shown_as_text(shell: Shell, model: Path, name: str) -> None:
    model.rename(shell.folder / name)
    ended = shell(name, "--prompt", f"{name}{ESCAPE}", "--dtype", "fp16", "--attn", "eager")
    assert ended.code == ExitCode.GATE_HOLDS
    visible = name if name.isprintable() else ascii(name)[1:-1]
    assert f"scanning {visible} " in ended.err
    assert visible in ended.out


# What the machine does

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda each: type(each).__name__)
def test_out_of_memory_in_a_run(shell: Shell, error: Exception) -> None:
    def forward(*_arguments: object) -> None:
        raise error

    shell.monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", forward)
    shell.refuses(
        *("model", "--quick", "-o", "report.json"),
        code=ExitCode.INCOMPLETE,
        says="out of memory during the scan",
        hint="--quick",
    )


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda each: type(each).__name__)
def test_out_of_memory_in_a_later_layer_keeps_those_before(shell: Shell, error: Exception) -> None:
    forward: Any = modeling_qwen2.Qwen2DecoderLayer.forward

    def fail_later(layer: Any, *arguments: object, **options: object) -> object:
        if layer.self_attn.layer_idx == 1:
            raise error
        return forward(layer, *arguments, **options)

    shell.monkeypatch.setattr(modeling_qwen2.Qwen2DecoderLayer, "forward", fail_later)
    ended = shell("model", "--quick", "-o", "report.json")
    assert (ended.code, ended.left) == (ExitCode.INCOMPLETE, ("report.json",))
    report = Report.from_dict(json.loads((shell.folder / "report.json").read_text()))
    assert not report.complete
    assert str(report.incomplete_reason).startswith("out of memory during the scan")
    assert {len(run.layers) for run in report.runs} == {1}
    assert {run.verdict for run in report.runs} == {Verdict.INCOMPLETE}
    assert all(str(run.reason) in str(report.incomplete_reason) for run in report.runs)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda each: type(each).__name__)
def test_out_of_memory_while_loading(shell: Shell, error: Exception) -> None:
    def load(*_arguments: object, **_options: object) -> None:
        raise error

    shell.monkeypatch.setattr(transformers.Qwen2ForCausalLM, "from_pretrained", load)
    shell.refuses(
        "model", code=ExitCode.INCOMPLETE, says="out of memory while loading", hint="--dtype"
    )


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize(
    ("owner", "name", "options"),
    [
        (checkpoint_audit, "audit_chunk", ()),
        (Weights, "read_into", ()),
        (torch.nn.Module, "to", ["--resident"]),
    ],
    ids=["audit", "reading", "moving to the device"],
)
def test_out_of_memory_anywhere_else(
    shell: Shell, owner: object, name: str, options: Sequence[str], error: Exception
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise error

    shell.monkeypatch.setattr(owner, name, fail)
    shell.refuses("model", *options, code=ExitCode.INCOMPLETE, says="out of memory", hint="--dtype")


def test_less_memory_than_the_weights_need(shell: Shell) -> None:
    class Memory:
        total = available = 1000

    shell.monkeypatch.setattr("psutil.virtual_memory", Memory)
    shell.refuses("model", code=ExitCode.INCOMPLETE, says="not enough memory", hint="--quick")


def test_a_run_that_raises_fails_alone_and_says_why(shell: Shell) -> None:
    forward: Any = modeling_qwen2.Qwen2MLP.forward

    def fail_in_float16(module: Any, x: torch.Tensor) -> torch.Tensor:
        if x.dtype is torch.float16:
            raise ValueError(f"[red]{ESCAPE}no\nsecond line")
        return forward(module, x)

    shell.monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", fail_in_float16)
    report = shell.scans("model", code=ExitCode.GATE_HOLDS)
    failed = {run.dtype for run in report.runs if run.verdict is Verdict.FAILED}
    assert failed == {"float16"}
    assert r"ValueError: [red]\x1b[31mno" in shell("model", "--quick", "--require", "fp16+sdpa").err


def test_what_libraries_warn_of_is_not_for_the_reader(shell: Shell) -> None:
    forward: Any = modeling_qwen2.Qwen2MLP.forward

    def warn(module: Any, x: torch.Tensor) -> torch.Tensor:
        import warnings  # noqa: PLC0415  as a library would

        warnings.warn("call me differently", UserWarning, stacklevel=1)
        return forward(module, x)

    shell.monkeypatch.setattr(modeling_qwen2.Qwen2MLP, "forward", warn)
    ended = shell("model", "--quick")
    assert ended.code == ExitCode.GATE_HOLDS
    assert "differently" not in ended.err


# What is written


def test_two_outputs_are_both_written(shell: Shell) -> None:
    ended = shell("model", "--quick", "-o", "one.json", "-o", "two.txt")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ("one.json", "two.txt"))
    assert Report.from_dict(json.loads((shell.folder / "one.json").read_text())).complete
    assert "SAFE" in (shell.folder / "two.txt").read_text()


def test_an_output_that_fails_does_not_cost_the_other(shell: Shell) -> None:
    replace = Path.replace

    def fail_once(path: Path, target: Path) -> Path:
        if failures:
            raise failures.pop()
        return replace(path, target)

    failures = [OSError(errno.ENOSPC, "No space left on device")]
    shell.monkeypatch.setattr(Path, "replace", fail_once)
    ended = shell("model", "--quick", "-o", "one.json", "-o", "two.json")
    assert (ended.code, ended.left) == (ExitCode.USAGE, ("two.json",))
    assert "No space left on device" in ended.error
    assert ended.out.startswith("✓ float32 + sdpa: safe")


# Ctrl-C


def press_at(shell: Shell, moment: Callable[[Announcement | Step], bool]) -> None:
    """Presses Ctrl-C the first time that this is observed."""
    pressed: list[object] = []

    def observe(event: Announcement | Step) -> None:
        if not pressed and moment(event):
            pressed.append(event)
            signal.raise_signal(signal.SIGINT)

    def progress(*, quiet: bool) -> contextlib.AbstractContextManager[object]:
        assert not quiet
        return contextlib.nullcontext(observe)

    shell.monkeypatch.setattr(terminal, "progress", progress)


MOMENTS: Mapping[str, Callable[[Announcement | Step], bool]] = {
    "the first step": lambda event: isinstance(event, Step),
    "the second run": lambda event: isinstance(event, Step) and event.run != "float32 + sdpa",
    "the first layer": lambda event: isinstance(event, Step) and event.unit.endswith("layers.0"),
    "half of it": lambda event: isinstance(event, Step) and event.share > 0.5,
    "the end": lambda event: isinstance(event, Step) and event.share > 0.9,
}


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_a_whole_report_marked_incomplete(shell: Shell, moment: str) -> None:
    press_at(shell, MOMENTS[moment])
    ended = shell("model", "-o", "partial.json", "-o", "partial.txt")
    assert (ended.code, ended.out) == (ExitCode.INTERRUPTED, "")
    assert ended.left == ("partial.json", "partial.txt")
    assert ended.err.startswith("interrupted\n")
    report = Report.from_dict(json.loads((shell.folder / "partial.json").read_text()))
    assert (report.complete, report.incomplete_reason) == (False, "interrupted")
    assert finding(report, "PC901").severity is Severity.WARNING
    assert "INCOMPLETE" in (shell.folder / "partial.txt").read_text()


@pytest.mark.usefixtures("ctrl_c")
def test_nothing_is_called_safe_before_it_was_measured(shell: Shell) -> None:
    press_at(shell, MOMENTS["the first step"])
    assert shell("model", "-o", "partial.json").code == ExitCode.INTERRUPTED
    report = Report.from_dict(json.loads((shell.folder / "partial.json").read_text()))
    assert Verdict.SAFE not in {run.verdict for run in report.runs}


def press(*_arguments: object, **_options: object) -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (source, "load_config"),
        (transformers.Qwen2ForCausalLM, "from_pretrained"),
        (memory_budget, "activation_bytes"),
    ],
    ids=["config", "loading", "planning"],
)
def test_ctrl_c_when_there_is_no_report_leaves_nothing(
    shell: Shell, owner: object, name: str
) -> None:
    shell.monkeypatch.setattr(owner, name, press)
    ended = shell("model", "--quick", "-o", "report.json")
    assert (ended.code, ended.left) == (ExitCode.INTERRUPTED, ())


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_without_an_output_writes_nothing(shell: Shell) -> None:
    press_at(shell, MOMENTS["half of it"])
    ended = shell("model")
    assert (ended.code, ended.out, ended.left) == (ExitCode.INTERRUPTED, "", ())
    assert ended.err == (
        "interrupted\nINCOMPLETE: stopped before all probes were done, no verdict (interrupted)\n"
    )


# The same as a process of its own


def start(folder: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(  # noqa: S603  our own program
        [sys.executable, "-m", "precheck", "scan", *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(folder / "cache")},
        **options,
    )


def test_a_process_that_cannot_scan_ends_with_two_lines(shell: Shell, model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    process = start(shell.folder, "model", "-o", "report.json", stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (ExitCode.INCOMPLETE, "")
    first, *last = err.splitlines()
    assert first == "importing torch and transformers"
    assert [line.split(":")[0] for line in last] == ["error", "hint"]
    assert not (shell.folder / "report.json").exists()


def test_a_reader_that_takes_one_line_and_goes(shell: Shell) -> None:
    process = start(shell.folder, "model", "--quick", "--format", "json", stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    with process.stdout, process.stderr:
        assert process.stdout.readline() == "{\n"
        process.stdout.close()
        err = process.stderr.read()
    assert process.wait(timeout=300) == ExitCode.GATE_HOLDS
    assert err.splitlines()[-1] == "PASS: float32 + sdpa is safe"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_the_caller_closed_is_done_without(shell: Shell, stream: str) -> None:
    shell.monkeypatch.setattr(sys, stream, None)
    ended = shell("model", "--quick", "-o", "report.json")
    assert (ended.code, ended.left) == (ExitCode.GATE_HOLDS, ("report.json",))
    assert (ended.out == "", ended.err == "") == (stream == "stdout", stream == "stderr")
    assert shell("nowhere/at/all").code == ExitCode.INCOMPLETE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_stdout_does_not_cost_the_file(shell: Shell) -> None:
    with Path("/dev/full").open("w") as full:
        process = start(shell.folder, "model", "--quick", "-o", "report.json", stdout=full)
        _, err = process.communicate(timeout=300)
    assert process.returncode == ExitCode.USAGE
    assert "error: cannot write to stdout: No space left on device\nhint: " in err
    assert Report.from_dict(json.loads((shell.folder / "report.json").read_text())).complete


def test_ctrl_c_from_outside_ends_the_process_with_a_partial_report(shell: Shell) -> None:
    # Every length is a batch of its own, so the signal comes long before the end.
    lines = (f"{'word ' * length}\n" for length in range(1, 120))
    (shell.folder / "prompts.txt").write_text("".join(lines))
    process = start(
        *(shell.folder, "model", "--prompts", "prompts.txt", "-o", "partial.json"),
        stdout=subprocess.PIPE,
        preexec_fn=restore_ctrl_c,
    )
    assert process.stderr
    for line in process.stderr:
        if line.startswith("weights read"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (ExitCode.INTERRUPTED, ""), err
    first, second, last = err.splitlines()[-3:]
    assert (first, second) == ("interrupted", "partial results written to partial.json")
    assert last.startswith("INCOMPLETE: ")  # how much was measured is chance
    report = Report.from_dict(json.loads((shell.folder / "partial.json").read_text()))
    assert not report.complete


def restore_ctrl_c() -> None:
    """In the child: a parent in the background hands on that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
