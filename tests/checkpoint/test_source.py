from __future__ import annotations

import importlib
import json
import shutil
import struct
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import save_file

from precheck.checkpoint import hub
from precheck.checkpoint.decoded import DecodedWeights
from precheck.checkpoint.formats import FOREIGN_FORMATS, ForeignFormat
from precheck.checkpoint.hub import Snapshot, fetch_files
from precheck.checkpoint.quantization import Quantization
from precheck.checkpoint.source import Checkpoint, open_checkpoint
from precheck.checkpoint.weights import Weights
from precheck.errors import (
    CheckpointAccessError,
    CheckpointCorruptError,
    PrecheckError,
    UnsupportedModelError,
    UsageError,
)
from precheck.records.progress import Announcement, Step
from tests.gguf_files import write_gguf
from tests.tiny_models import tiny

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

COMMIT = "0123456789abcdef0123456789abcdef01234567"

transport = importlib.import_module(HfHubHTTPError.__mro__[1].__module__.split(".")[0])


def ignore(_event: Announcement | Step) -> None:
    """An observer that does not care."""


def write_config(folder: Path, **changes: Any) -> None:
    config = transformers.Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    content = config.to_dict() | changes
    (folder / "config.json").write_text(json.dumps(content))


def write_shards(folder: Path, *, shards: tuple[str, ...] = ("a", "b", "c", "d", "e")) -> None:
    weight_map = {}
    for name in shards:
        save_file({name: torch.ones(4)}, folder / f"model-{name}.safetensors")
        weight_map[name] = f"model-{name}.safetensors"
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    write_config(folder)
    save_file({"weight": torch.ones(4)}, folder / "model.safetensors")
    return folder


def opened(model: Path | str, **arguments: Any) -> Checkpoint:
    return open_checkpoint(str(model), observe=ignore, **arguments)


def refused(
    model: Path | str, *, kind: type[PrecheckError], says: Collection[str], **arguments: Any
) -> PrecheckError:
    with pytest.raises(kind) as caught:
        opened(model, **arguments)
    assert type(caught.value) is kind
    for part in says:
        assert part in caught.value.message
    assert caught.value.hint
    return caught.value


# Local folders


def test_opens_a_local_folder(folder: Path) -> None:
    checkpoint = opened(folder)
    assert checkpoint.folder == folder
    assert checkpoint.revision is None
    assert checkpoint.config.model_type == "qwen2"
    assert checkpoint.weight_files == (folder / "model.safetensors",)


def test_opens_every_shard_of_an_index_once(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_shards(folder, shards=("b", "a"))
    assert [file.name for file in opened(folder).weight_files] == [
        "model-a.safetensors",
        "model-b.safetensors",
    ]


def test_reads_the_file_that_the_config_names(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    write_config(folder, transformers_weights="other.safetensors")
    assert opened(folder).weight_files == (folder / "other.safetensors",)


def test_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_config(folder, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "odd": 1})
    verbosity = transformers.logging.get_verbosity()
    opened(folder)
    assert capfd.readouterr() == ("", "")
    assert transformers.logging.get_verbosity() == verbosity


@pytest.mark.parametrize("model", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere", "", "a b"])
def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(model: str) -> None:
    error = refused(model, kind=CheckpointAccessError, says=["no such folder", repr(model)])
    assert "Hub id" in str(error.hint)


def test_a_revision_of_a_local_folder_is_a_mistake(folder: Path) -> None:
    refused(folder, kind=UsageError, says=["revision", "'main'"], revision="main")


def test_a_folder_without_config_says_so(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, kind=CheckpointAccessError, says=["no config.json", repr(str(folder))])


def test_a_folder_of_checkpoints_names_the_one_inside(folder: Path) -> None:
    error = refused(folder.parent, kind=CheckpointAccessError, says=["no config.json"])
    assert str(folder) in str(error.hint)


def test_an_empty_folder_says_that_there_is_no_config(tmp_path: Path) -> None:
    refused(tmp_path, kind=CheckpointAccessError, says=["no config.json"])


def test_a_file_is_told_to_be_given_as_its_folder(folder: Path) -> None:
    error = refused(
        folder / "model.safetensors", kind=UnsupportedModelError, says=["not a folder", "folder"]
    )
    assert "folder" in str(error.hint)


def test_a_gguf_file_without_content_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "model-q4.gguf"
    file.write_bytes(b"GGUF")
    refused(file, kind=CheckpointCorruptError, says=["GGUF", "model-q4.gguf"])


# Configs


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[" * 100_000, b"[]", b"3"])
def test_a_broken_config_names_the_file(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, kind=CheckpointCorruptError, says=["broken 'config.json'"])


def test_a_config_with_impossible_values_names_the_value(folder: Path) -> None:
    write_config(folder, num_hidden_layers="many")
    refused(folder, kind=CheckpointCorruptError, says=["config.json", "num_hidden_layers"])


def test_an_unknown_model_type_says_to_update(folder: Path) -> None:
    write_config(folder, model_type="qwen99")
    error = refused(folder, kind=UnsupportedModelError, says=["'qwen99'", "transformers"])
    assert "pip install -U transformers" in str(error.hint)


@pytest.mark.parametrize("model_type", [[], 3, {"a": 1}])
def test_a_model_type_that_is_no_text_is_unknown(folder: Path, model_type: object) -> None:
    write_config(folder, model_type=model_type)
    refused(folder, kind=UnsupportedModelError, says=["model_type"])


def test_a_config_without_model_type_is_not_a_transformers_checkpoint(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    refused(folder, kind=UnsupportedModelError, says=["no model_type"])


def test_text_from_the_checkpoint_is_shown_as_data(folder: Path) -> None:
    write_config(folder, model_type="\x1b[31mred")
    error = refused(folder, kind=UnsupportedModelError, says=["\\x1b[31mred"])
    assert "\x1b" not in error.message


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"quantization_config": {"quant_method": "hqq", "bits": 4}}, "hqq"),
        ({"quantization_config": {"bits": 4}}, "unnamed"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
        ({"text_config": {"quantization_config": {"quant_method": "quark"}}}, "quark"),
    ],
)
def test_a_quantised_checkpoint_is_refused_by_name(
    folder: Path, changes: dict[str, Any], method: str
) -> None:
    write_config(folder, **changes)
    error = refused(folder, kind=UnsupportedModelError, says=["quantis", method])
    assert "unquantised base model" in str(error.hint)


CODE = {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddForCausalLM"}


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "odd", "architectures": ["OddForCausalLM"]},
        {"model_type": "odd", "architectures": None},
        {"architectures": ["OddForCausalLM"]},
    ],
)
def test_custom_code_needs_permission(folder: Path, changes: dict[str, Any]) -> None:
    write_config(folder, auto_map=CODE, **changes)
    (folder / "odd.py").write_text("raise AssertionError('ran')")
    error = refused(folder, kind=UnsupportedModelError, says=["custom code without permission"])
    assert "--trust-remote-code" in str(error.hint)


def test_custom_code_is_not_needed_for_a_class_that_transformers_has(folder: Path) -> None:
    write_config(folder, auto_map=CODE)
    (folder / "odd.py").write_text("raise AssertionError('ran')")
    assert opened(folder).config.model_type == "qwen2"


def test_custom_code_runs_with_permission(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    write_config(folder, auto_map=CODE, model_type="odd", architectures=["OddForCausalLM"])
    (folder / "odd.py").write_text(
        "from transformers import PreTrainedConfig\n"
        "class OddConfig(PreTrainedConfig):\n    model_type = 'odd'\n"
    )
    checkpoint = opened(folder, trust_remote_code=True)
    assert type(checkpoint.config).__name__ == "OddConfig"
    assert checkpoint.trust_remote_code


def test_custom_code_that_fails_is_not_a_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    modules = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
    write_config(folder, auto_map=CODE, model_type="odd")
    (folder / "odd.py").write_text("raise KeyError('broken code')")
    refused(folder, kind=CheckpointCorruptError, says=["broken code"], trust_remote_code=True)


# Formats


@pytest.mark.parametrize("foreign", FOREIGN_FORMATS, ids=lambda each: each.name)
def test_refuses_another_format_by_name(tmp_path: Path, foreign: ForeignFormat) -> None:
    for pattern in foreign.patterns:
        where = tmp_path / str(abs(hash(pattern)))
        file = where / pattern.replace("*", "0")
        file.parent.mkdir(parents=True)
        file.write_bytes(b"")
        write_config(where)
        error = refused(where, kind=UnsupportedModelError, says=[foreign.name])
        assert str(error.hint).startswith(foreign.hint.format(detail=""))


def test_an_adapter_is_refused_also_beside_weights(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    error = refused(folder, kind=UnsupportedModelError, says=["PEFT adapter"])
    assert "merge_and_unload" in str(error.hint)


def test_an_adapter_names_its_base_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    error = refused(tmp_path, kind=UnsupportedModelError, says=["PEFT adapter"])
    assert "scan its base model 'owner/base', or merge it first" in str(error.hint)


@pytest.mark.parametrize("content", ["[]", "{", '{"base_model_name_or_path": 5}'])
def test_an_adapter_that_names_no_base_is_refused_too(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    error = refused(tmp_path, kind=UnsupportedModelError, says=["PEFT adapter"])
    assert "scan its base model, or merge it first" in str(error.hint)


def test_a_pipeline_names_its_folders_with_transformers_models(tmp_path: Path) -> None:
    parts = {
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "safety_checker": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "P", **parts}))
    for part in ("text_encoder", "text_encoder_2", "unet"):
        (tmp_path / part).mkdir()
        write_config(tmp_path / part)
    error = refused(tmp_path, kind=UnsupportedModelError, says=["diffusers pipeline"])
    assert "the folder 'text_encoder' or 'text_encoder_2' in it" in str(error.hint)
    assert "unet" not in str(error.hint)


def test_other_formats_beside_safetensors_do_not_matter(folder: Path) -> None:
    for name in ("model.gguf", "model.onnx", "tf_model.h5", "flax_model.msgpack"):
        (folder / name).write_bytes(b"")
    assert opened(folder).weight_files == (folder / "model.safetensors",)


def test_a_folder_without_weights_says_what_was_expected(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, kind=CheckpointAccessError, says=["no weights", "'model.safetensors'"])


def test_shards_without_an_index_are_named(folder: Path) -> None:
    write_shards(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").unlink()
    error = refused(folder, kind=CheckpointAccessError, says=["no weights"])
    assert "'model-a.safetensors'" in str(error.hint)
    assert "2 more" in str(error.hint)


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    write_shards(folder)
    (folder / "model-b.safetensors").unlink()
    (folder / "model-d.safetensors").unlink()
    refused(
        folder,
        kind=CheckpointAccessError,
        says=["2 of 5 shards", "'model-b.safetensors', 'model-d.safetensors'"],
    )


@pytest.mark.parametrize(
    "shard",
    ["../a.safetensors", "/etc/a.safetensors", "x/../../a.safetensors", "..\\a.safetensors",
     "C:\\a.safetensors", "C:a.safetensors", "weights.bin", 3, None],
)  # fmt: skip
def test_an_index_that_points_elsewhere_is_refused(folder: Path, shard: object) -> None:
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.ones(1)}, folder.parent / "a.safetensors")
    index = {"weight_map": {"a": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, kind=CheckpointCorruptError, says=["index.json", repr(shard)])


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, [], "{"])
def test_a_broken_index_is_named(folder: Path, index: object) -> None:
    (folder / "model.safetensors").unlink()
    text = index if isinstance(index, str) else json.dumps(index)
    (folder / "model.safetensors.index.json").write_text(text)
    refused(folder, kind=CheckpointCorruptError, says=["model.safetensors.index.json"])


def test_a_config_that_names_a_file_elsewhere_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    write_config(folder, transformers_weights="../other.safetensors")
    refused(folder, kind=CheckpointAccessError, says=["no weights", "../other.safetensors"])


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_a_truncated_shard_is_named_before_anything_runs(folder: Path, kept: int) -> None:
    (folder / "model.safetensors").unlink()
    write_shards(folder)
    shard = folder / "model-c.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    refused(folder, kind=CheckpointCorruptError, says=["truncated", "model-c.safetensors"])


# Pickles


def test_a_pickle_needs_permission(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(4)}, folder / "pytorch_model.bin")
    error = refused(folder, kind=UnsupportedModelError, says=["pickle", "'pytorch_model.bin'"])
    assert "--allow-pickle" in str(error.hint)


ROUTES = {
    "the adapter that transformers reads": ("adapter_model.bin", None),
    "no suffix": ("weights", None),
    "another suffix": ("weights.pt", None),
    "a suffix in capitals": ("w.SAFETENSORS", None),
    "an index of pickles": (None, "pytorch_model.bin.index.json"),
    "an index of any name": ("any.index.json", "any.index.json"),
    "an index that is called safetensors": (
        "safetensors.bin.index.json",
        "safetensors.bin.index.json",
    ),
}
"""``transformers_weights`` of the config, and the name of an index."""


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("config", ["config.json", "config.5.0.0.json"])
def test_no_pickle_is_opened_without_permission(
    folder: Path, route: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    named, index = ROUTES[route]
    (folder / "model.safetensors").unlink()
    for name in ("adapter_model.bin", "weights", "weights.pt", "w.SAFETENSORS"):
        torch.save({"weight": torch.ones(4)}, folder / name)
    if index is not None:
        weight_map = {"weight": "adapter_model.bin"}
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    write_config(folder, **({} if named is None else {"transformers_weights": named}))
    if config != "config.json":  # the one that this version of transformers reads
        (folder / "config.json").rename(folder / config)
        write_config(folder, configuration_files=[config])
    monkeypatch.setattr(torch, "load", None)
    error = refused(folder, kind=UnsupportedModelError, says=["pickle"])
    assert "--allow-pickle" in str(error.hint)


def test_weights_are_not_opened_around_the_gate(folder: Path) -> None:
    """Also where somebody else has chosen the files."""
    torch.save({"weight": torch.ones(4)}, folder / "a.bin")
    for open_shards in (Weights, partial(DecodedWeights, quantization=Quantization(method="fp8"))):
        with pytest.raises(UnsupportedModelError, match="pickle"):
            open_shards([folder / "model.safetensors", folder / "a.bin"])


def test_what_the_config_names_is_read_or_nothing(folder: Path) -> None:
    torch.save({"weight": torch.ones(4)}, folder / "pytorch_model.bin")
    write_config(folder, transformers_weights="other.safetensors")
    refused(folder, kind=CheckpointAccessError, says=["other.safetensors"], allow_pickle=True)


@pytest.mark.parametrize("files", [3, ["config.evil.json"], [3]])
def test_configs_of_versions_that_are_none(folder: Path, files: object) -> None:
    write_config(folder, configuration_files=files)
    refused(folder, kind=CheckpointCorruptError, says=["configuration_files"])


def test_the_config_of_this_version_is_checked_like_the_other(folder: Path) -> None:
    write_config(folder, num_hidden_layers=10**9, layer_types=None)
    (folder / "config.json").rename(folder / "config.5.0.0.json")
    write_config(folder, configuration_files=["config.5.0.0.json", "config.999.0.0.json"])
    refused(folder, kind=CheckpointCorruptError, says=["num_hidden_layers is 1000000000"])


def test_a_pickle_is_read_with_permission(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(4)}, folder / "pytorch_model.bin")
    checkpoint = opened(folder, allow_pickle=True)
    assert checkpoint.weight_files == (folder / "pytorch_model.bin",)
    assert checkpoint.allow_pickle


def test_safetensors_go_before_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not read")
    assert opened(folder, allow_pickle=True).weight_files == (folder / "model.safetensors",)


# Built-in models


def test_an_unknown_demo_lists_the_known_ones() -> None:
    refused("demo:nothing", kind=UsageError, says=["'nothing'", "qwen2-eager"])


def test_opens_a_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    checkpoint = opened("demo:qwen2-eager")
    assert checkpoint.id == "demo:qwen2-eager"
    assert checkpoint.config.dtype == torch.bfloat16


# The Hub


class FakeHub:
    """A repository whose files lie in ``remote``, and a cache that fills as they are fetched."""

    def __init__(self, remote: Path, cache: Path) -> None:
        self.remote = remote
        self.snapshot = cache / "snapshots" / COMMIT
        self.fetched: list[str] = []

    def model_info(self, _repo: str, **_arguments: object) -> SimpleNamespace:
        files = [file for file in self.remote.rglob("*") if file.is_file()]
        return SimpleNamespace(
            sha=COMMIT,
            siblings=[
                SimpleNamespace(
                    rfilename=file.relative_to(self.remote).as_posix(), size=file.stat().st_size
                )
                for file in files
            ],
        )

    def snapshot_download(
        self, _repo: str, *, allow_patterns: list[str], **_arguments: object
    ) -> str:
        self.snapshot.mkdir(parents=True, exist_ok=True)
        for name in allow_patterns:
            self.fetched.append(name)
            target = self.snapshot / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / name, target)
        return str(self.snapshot)


@pytest.fixture
def fake_hub(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(folder, tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "model_info", fake.model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_fetches_only_what_is_needed(fake_hub: FakeHub) -> None:
    wanted = ["config.json", "tokenizer.json", "merges.txt", "spiece.model", "chat_template.jinja"]
    unwanted = ["model.fp16.safetensors", "pytorch_model.bin", "code.py", "README.md", "a.onnx"]
    for name in [*wanted[1:], *unwanted]:
        (fake_hub.remote / name).write_bytes(b"")
    (fake_hub.remote / "onnx").mkdir()
    (fake_hub.remote / "onnx" / "config.json").write_bytes(b"")
    checkpoint = opened("owner/name")
    assert sorted(fake_hub.fetched) == sorted([*wanted, "model.safetensors"])
    assert checkpoint.revision == COMMIT
    assert checkpoint.folder == fake_hub.snapshot


@pytest.mark.parametrize(
    ("address", "revision"),
    [
        ("https://huggingface.co/owner/name", None),
        ("https://hf.co/owner/name/", None),
        ("http://www.huggingface.co/owner/name/tree/v9", "v9"),
        ("https://huggingface.co/owner/name/blob/v9/config.json?download=true", "v9"),
        ("https://huggingface.co/owner/name/resolve/v9/a/b.json#L1", "v9"),
    ],
)
def test_an_address_on_the_hub_is_a_model(address: str, revision: str | None) -> None:
    assert hub.from_url(address, None) == ("owner/name", revision)
    assert hub.from_url(address, "mine") == ("owner/name", "mine")


@pytest.mark.parametrize(
    "model", ["owner/name", "https://example.org/owner/name", "https://huggingface.co/owner", ""]
)
def test_anything_else_is_not_an_address(model: str) -> None:
    assert hub.from_url(model, "v9") == (model, "v9")


def test_an_adapter_on_the_hub_names_its_base_model(fake_hub: FakeHub) -> None:
    adapter = fake_hub.remote / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "owner/base"}')
    error = refused("owner/name", kind=UnsupportedModelError, says=["PEFT adapter"])
    assert "scan its base model 'owner/base'" in str(error.hint)
    assert fake_hub.fetched == [adapter.name]


def test_fetches_code_only_with_permission(fake_hub: FakeHub) -> None:
    (fake_hub.remote / "odd.py").write_text("")
    opened("owner/name", trust_remote_code=True)
    assert "odd.py" in fake_hub.fetched


@pytest.mark.parametrize(
    "sibling",
    [
        {"rfilename": None, "size": 3},
        {"rfilename": 3, "size": 3},
        {"size": 3},
    ],
)
def test_a_hub_that_lists_no_names(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, sibling: dict[str, object]
) -> None:
    info = SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(**sibling)])
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: info)
    refused("owner/name", kind=CheckpointAccessError, says=["invalid answer"])
    assert fake_hub.fetched == []


@pytest.mark.parametrize("size", ["3 GB", None, [1]])
def test_a_hub_that_tells_no_sizes(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, size: object
) -> None:
    info = fake_hub.model_info("")
    for file in info.siblings:
        file.size = size
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: info)
    assert opened("owner/name").revision == COMMIT


def test_announces_the_size_before_the_download(fake_hub: FakeHub) -> None:
    (fake_hub.remote / "model.safetensors").unlink()
    save_file({"weight": torch.ones(5_000_000)}, fake_hub.remote / "model.safetensors")
    announced: list[str] = []

    def observe(event: Announcement | Step) -> None:
        assert isinstance(event, Announcement)
        assert "model.safetensors" not in fake_hub.fetched
        announced.append(event.text)

    open_checkpoint("owner/name", observe=observe)
    assert announced == ["downloading owner/name at 0123456789ab: 1 weight file, 0.02 GB"]


def test_announces_nothing_when_the_cache_has_it(fake_hub: FakeHub) -> None:
    opened("owner/name")
    fake_hub.fetched.clear()

    def observe(event: Announcement | Step) -> None:
        pytest.fail(f"announced {event}")

    open_checkpoint("owner/name", observe=observe)
    assert "model.safetensors" not in fake_hub.fetched


def test_refuses_before_the_weights_are_fetched(fake_hub: FakeHub) -> None:
    write_config(fake_hub.remote, quantization_config={"quant_method": "hqq"})
    refused("owner/name", kind=UnsupportedModelError, says=["quantised"])
    assert "model.safetensors" not in fake_hub.fetched


def test_refuses_a_gguf_repository_before_anything_is_fetched(fake_hub: FakeHub) -> None:
    (fake_hub.remote / "model.safetensors").rename(fake_hub.remote / "model.gguf")
    error = refused("owner/name", kind=UnsupportedModelError, says=["GGUF", "'owner/name'"])
    assert "model.gguf" in str(error.hint)
    assert fake_hub.fetched == []


def test_a_gguf_file_of_a_repository_is_all_that_is_fetched(fake_hub: FakeHub) -> None:
    write_gguf(tiny("llama"), fake_hub.remote / "q8.gguf")
    checkpoint = opened("owner/name:q8.gguf")
    assert fake_hub.fetched == ["q8.gguf"]
    assert checkpoint.revision == COMMIT
    assert checkpoint.weight_files == (fake_hub.snapshot / "q8.gguf",)


def test_a_gguf_file_that_a_repository_lacks_names_those_it_has(fake_hub: FakeHub) -> None:
    (fake_hub.remote / "q4.gguf").write_bytes(b"GGUF")
    error = refused("owner/name:q8.gguf", kind=CheckpointAccessError, says=["'q8.gguf'"])
    assert "owner/name:q4.gguf" in str(error.hint)
    assert fake_hub.fetched == []


def test_a_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    file = write_gguf(tiny("llama"), tmp_path / "a.gguf")
    assert opened(tmp_path).weight_files == (file,)
    refused(file, kind=UsageError, says=["revision"], revision="main")
    file.with_name("b.gguf").write_bytes(b"GGUF")
    error = refused(tmp_path, kind=CheckpointAccessError, says=["2 GGUF files"])
    assert "a.gguf" in str(error.hint)
    assert "b.gguf" in str(error.hint)


def test_a_gguf_file_beside_a_checkpoint_is_not_it(folder: Path) -> None:
    (folder / "a.gguf").write_bytes(b"GGUF")
    assert opened(folder).gguf is None


def test_a_gguf_file_of_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny("llama")
    file = write_gguf(model, tmp_path / "a.gguf")
    file.write_bytes(file.read_bytes().replace(b"llama", b"lxama"))
    refused(file, kind=UnsupportedModelError, says=["lxama", "not supported"])


def test_a_gguf_file_that_is_loaded_by_other_rules_is_refused_by_name(tmp_path: Path) -> None:
    file = write_gguf(tiny("qwen2"), tmp_path / "a.gguf")
    name, other = (struct.pack("<Q", len(text)) + text for text in (b"qwen2", b"lfm2"))
    file.write_bytes(file.read_bytes().replace(name, other, 1) + bytes(32))
    refused(file, kind=UnsupportedModelError, says=["lfm2"])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (b"llama.embedding_length", "hidden size (2147483647)"),
        (b"llama.vocab_size", "describes a model of more than"),
    ],
)
def test_a_gguf_file_that_describes_a_far_larger_model_is_refused(
    key: bytes, says: str, tmp_path: Path
) -> None:
    file = write_gguf(tiny("llama"), tmp_path / "a.gguf")
    content = file.read_bytes()
    place = content.index(key) + len(key) + 4
    file.write_bytes(content[:place] + b"\xff\xff\xff\x7f" + content[place + 4 :])
    refused(file, kind=CheckpointCorruptError, says=[says])


def test_names_are_fetched_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    patterns: list[str] = []

    def download(_repo: str, *, allow_patterns: list[str], **_arguments: object) -> str:
        patterns.extend(allow_patterns)
        return ""

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    snapshot = Snapshot(repo="a/b", revision=None, commit=COMMIT, folder=Path(), sizes={})
    fetch_files(snapshot, ["a[1]*.json"])
    names = ["a[1]*.json", "a1.json", "a[1]b.json"]
    assert list(filter_repo_objects(names, allow_patterns=patterns)) == ["a[1]*.json"]


def hub_error(kind: Callable[..., Exception], *, status: int) -> Exception:
    request = transport.Request("GET", "https://huggingface.co/api/models/owner/name")
    return kind("said the Hub", response=transport.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (hub_error(GatedRepoError, status=403), "gated", "hf auth login"),
        (
            hub_error(RepositoryNotFoundError, status=401),
            "no folder or Hub repository",
            "hf auth login",
        ),
        (hub_error(RevisionNotFoundError, status=404), "no revision 'v9'", "/commits/main"),
        (hub_error(HfHubHTTPError, status=503), "said the Hub", "status.huggingface.co"),
        (OSError(28, "No space left on device"), "No space left", "HF_HOME"),
        (json.JSONDecodeError("Expecting value", "<html>", 0), "invalid answer", "HF_ENDPOINT"),
        (KeyError("rfilename"), "invalid answer", "HF_ENDPOINT"),
        (TypeError("argument of type 'NoneType'"), "invalid answer", "HF_ENDPOINT"),
        (AttributeError("'list' object has no attribute 'get'"), "invalid answer", "HF_ENDPOINT"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Exception) else "",
)
@pytest.mark.parametrize("fails", ["model_info", "snapshot_download"])
def test_says_what_the_hub_refused(
    fake_hub: FakeHub,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fails: str,
    error: Exception,
    says: str,
    hint: str,
) -> None:
    def fail(*_arguments: object, **_keywords: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, fails, fail)
    caught = refused(
        "owner/name", kind=CheckpointAccessError, says=[says, "owner/name"], revision="v9"
    )
    assert hint in str(caught.hint)
    assert caught.__cause__ is error
    assert not [name for name in fake_hub.fetched if name.endswith(".safetensors")]


UNREACHABLE = [
    transport.ConnectError("no route to host"),
    transport.ReadTimeout("too slow"),
    OfflineModeIsEnabled("offline"),
]


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda each: type(each).__name__)
def test_says_that_the_hub_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def unreachable(*_arguments: object, **_keywords: object) -> None:
        raise error

    def not_cached(*_arguments: object, **_keywords: object) -> None:
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    caught = refused("owner/name", kind=CheckpointAccessError, says=["cannot be reached"])
    assert "HF_HUB_OFFLINE" in str(caught.hint)


@pytest.mark.parametrize("error", UNREACHABLE, ids=lambda each: type(each).__name__)
def test_uses_the_cache_when_the_hub_cannot_be_reached(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    opened("owner/name")

    def unreachable(*_arguments: object, **_keywords: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "model_info", unreachable)
    assert opened("owner/name").weight_files == (fake_hub.snapshot / "model.safetensors",)


def test_a_connection_that_breaks_off_keeps_what_was_fetched(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = fake_hub.snapshot_download

    def break_off(repo: str, *, allow_patterns: list[str], **arguments: object) -> str:
        if "model.safetensors" in allow_patterns:
            raise transport.ReadError("reset by peer")
        return fetch(repo, allow_patterns=allow_patterns, **arguments)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    caught = refused("owner/name", kind=CheckpointAccessError, says=["lost", "reset by peer"])
    assert "same command" in str(caught.hint)


def test_an_empty_cache_offline_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused("owner/not-cached", kind=CheckpointAccessError, says=["cannot be reached"])
