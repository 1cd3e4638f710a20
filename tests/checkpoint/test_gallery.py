from __future__ import annotations

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from precheck.checkpoint import gallery
from precheck.checkpoint.checkpoint_audit import audit_weights
from precheck.checkpoint.gallery.qwen import PLANTED_BIAS, PLANTED_LAYER, build_eager
from precheck.checkpoint.gallery.vocabularies import packaged_text
from precheck.checkpoint.weights import Weights
from precheck.errors import UsageError

NUM_LAYERS = 6
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Outcome(NamedTuple):
    """One plain transformers run over the prompts, in float64."""

    log_probabilities: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...]

    @property
    def num_nan(self) -> int:
        return int(self.log_probabilities.isnan().sum())

    def kl_divergence(self, reference: Outcome) -> float:
        """KL(reference || self) in nats, mean over tokens."""
        expected, actual = reference.log_probabilities, self.log_probabilities
        return float((expected.exp() * (expected - actual)).sum(-1).mean())

    def last_layer_error(self, reference: Outcome) -> float:
        difference = self.hidden_states[-2] - reference.hidden_states[-2]
        return float((difference.norm(dim=-1) / reference.hidden_states[-2].norm(dim=-1)).mean())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gallery")
    build_eager(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(folder: Path) -> torch.Tensor:
    """Sixteen prompts of 48 tokens, (16, 48)."""
    ids = AutoTokenizer.from_pretrained(folder)(packaged_text())["input_ids"]
    return torch.tensor(ids[: 16 * 48]).reshape(16, 48)


@pytest.fixture(scope="module")
def outcomes(folder: Path, prompts: torch.Tensor) -> dict[tuple[torch.dtype, str], Outcome]:
    found = {}
    for dtype in DTYPES:
        for attention in ("eager", "sdpa"):
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention
            )
            with torch.no_grad():
                output = model(prompts, output_hidden_states=True, use_cache=False)
            found[dtype, attention] = Outcome(
                output.logits.double().log_softmax(-1),
                tuple(state.double() for state in output.hidden_states),
            )
    return found


Outcomes = dict[tuple[torch.dtype, str], Outcome]


def test_float32_agrees_with_itself(outcomes: Outcomes) -> None:
    eager, sdpa = outcomes[torch.float32, "eager"], outcomes[torch.float32, "sdpa"]
    assert sdpa.kl_divergence(eager) < 1e-6
    assert sdpa.last_layer_error(eager) < 1e-4


def test_float16_eager_is_all_nan_from_the_planted_layer_on(outcomes: Outcomes) -> None:
    broken = outcomes[torch.float16, "eager"]
    assert broken.num_nan == broken.log_probabilities.numel()
    assert [bool(state.isnan().any()) for state in broken.hidden_states] == [
        index > PLANTED_LAYER for index in range(NUM_LAYERS + 1)
    ]


def test_float16_sdpa_is_fine(outcomes: Outcomes) -> None:
    sdpa = outcomes[torch.float16, "sdpa"]
    assert sdpa.kl_divergence(outcomes[torch.float32, "sdpa"]) < 1e-4
    assert sdpa.last_layer_error(outcomes[torch.float32, "sdpa"]) < 0.01


def test_bfloat16_eager_is_wrong_without_a_nan(outcomes: Outcomes) -> None:
    eager = outcomes[torch.bfloat16, "eager"]
    assert eager.num_nan == 0
    assert 0.1 < eager.kl_divergence(outcomes[torch.float32, "eager"]) < 2.0


def test_bfloat16_sdpa_is_fine(outcomes: Outcomes) -> None:
    sdpa = outcomes[torch.bfloat16, "sdpa"]
    assert sdpa.kl_divergence(outcomes[torch.float32, "sdpa"]) < 0.002
    assert sdpa.last_layer_error(outcomes[torch.float32, "sdpa"]) < 0.03


def test_only_the_planted_scores_are_large(folder: Path, prompts: torch.Tensor) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    largest: dict[str, float] = {}

    def note(name: str) -> object:
        def hook(_module: object, _inputs: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor):
                largest[name] = float(tensor.abs().max())

        return hook

    for name, module in model.named_modules():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        output = model(prompts, use_cache=False, output_attentions=True)
    assert output.logits.abs().max() < 100
    planted = (f"{PLANTED_LAYER}.self_attn.q_proj", f"{PLANTED_LAYER}.self_attn.k_proj")
    rest = {name: value for name, value in largest.items() if not name.endswith(planted)}
    assert max(rest.values()) < 100  # nine bits below float16's largest
    assert {round(largest[f"model.layers.{name}"]) for name in planted} == {int(PLANTED_BIAS)}


def test_the_tokenizer_is_qwens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(tokenizer).__name__ == "Qwen2Tokenizer"
    assert tokenizer.decode([0]) == "!"
    assert tokenizer.bos_token is None
    for text in (
        "上海有个非常出名的地方，",  # noqa: RUF001  as it is typed
        "def f(x):\n    return x",
        "🚀 1234567",
        "\nnewline first",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer("<|im_start|>")["input_ids"] == [len(tokenizer) - 2]


def test_the_checkpoint_is_clean_bfloat16(folder: Path) -> None:
    with Weights([folder / "model.safetensors"]) as weights:
        assert set(weights.headers().elements_by_dtype) == {"bfloat16"}
        audit = audit_weights(weights)
    assert audit.nonfinite == audit.out_of_float16_range == ()


@pytest.mark.parametrize("name", gallery.GALLERY)
def test_two_builds_are_byte_identical_and_leave_the_random_state(
    name: str, tmp_path: Path
) -> None:
    state = torch.random.get_rng_state()
    folders = (tmp_path / "first", tmp_path / "second")
    for each in folders:
        each.mkdir()
        gallery.GALLERY[name].build(each)
    assert torch.equal(torch.random.get_rng_state(), state)
    files = sorted(file.name for file in folders[0].iterdir())
    assert {"config.json", "generation_config.json", "model.safetensors"} < set(files)
    assert {"tokenizer.json", "tokenizer_config.json"} < set(files)
    for file in files:
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes(), file


# The cache


def entry(*, version: int) -> gallery.GalleryModel:
    return gallery.GalleryModel(title="", story="", thread="", version=version, builder="")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A gallery with one model that is quick to build; notes every build."""
    built: list[Path] = []

    def quick(folder: Path) -> None:
        built.append(folder)
        (folder / "config.json").write_text("{}")

    model = entry(version=7)
    monkeypatch.setattr(gallery.GalleryModel, "build", lambda _, folder: quick(folder))
    monkeypatch.setattr(gallery, "GALLERY", {"quick": model})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return built


def test_builds_once_and_keeps_it(builds: list[Path], tmp_path: Path) -> None:
    folder = gallery.saved("quick")
    assert folder == tmp_path / "cache/precheck/gallery/quick-7"
    assert gallery.saved("quick") == folder
    assert len(builds) == 1
    assert [each.name for each in folder.parent.iterdir()] == ["quick-7"]


def test_many_at_once_get_one_whole_folder(builds: list[Path]) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(gallery.saved, ["quick"] * 16))
    assert len(folders) == 1
    folder = folders.pop()
    assert (folder / "config.json").is_file()
    assert [each.name for each in folder.parent.iterdir()] == ["quick-7"]
    assert builds


def test_a_build_that_fails_leaves_nothing(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(gallery.GalleryModel, "build", lambda _, folder: interrupted(folder))
    monkeypatch.setattr(gallery, "GALLERY", {"interrupted": entry(version=1)})
    with pytest.raises(KeyboardInterrupt):
        gallery.saved("interrupted")
    assert list((tmp_path / "cache/precheck/gallery").iterdir()) == []
    assert builds == []


def test_a_cache_that_cannot_be_written_does_not_matter(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = gallery.saved("quick")
    assert (folder / "config.json").is_file()
    assert builds == [folder]


def test_a_relative_cache_folder_is_ignored(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gallery.saved("quick") == tmp_path / ".cache/precheck/gallery/quick-7"
    assert len(builds) == 1


def test_a_disk_that_fills_up_is_not_hidden(
    builds: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Path, _target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        gallery.saved("quick")
    assert not builds[0].exists()


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="qwen2-eager"):
        gallery.saved("nothing")


def test_listing_the_gallery_imports_no_torch() -> None:
    code = "import precheck.checkpoint.gallery, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  our own code
