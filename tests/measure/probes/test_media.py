"""Images and sounds through a checkpoint's own processor, and what is said where that fails."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from PIL import Image
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

import precheck
from precheck.checkpoint.gallery import GALLERY
from precheck.checkpoint.processor import load_processor
from precheck.checkpoint.source import open_checkpoint
from precheck.commands.arguments import read_prompts
from precheck.errors import UnsupportedModelError, UsageError
from precheck.measure.probes.media import IMAGES, draw, sounds
from precheck.measure.probes.media_batches import Processor
from precheck.records.finding import Severity, Verdict
from precheck.records.prompts import ImagePrompt, Prompt
from precheck.records.traces import Section
from precheck.render.parts.headline import headline
from tests.gallery.diagnoses import check_silent
from tests.tiny_models import BOS, EOS, HIDDEN_SIZE, PAD, VOCAB_SIZE, tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

QUICK: dict[str, Any] = {"dtypes": ["float16"], "attn_implementations": ["sdpa"]}
TEXT: dict[str, Any] = {
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}


def _tokenizer(**special: str) -> Any:
    """The tiny tokenizer with tokens of a family, such as ``image_token``."""
    plain = tiny_tokenizer()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain.backend_tokenizer,
        pad_token=plain.pad_token,
        bos_token=plain.bos_token,
        eos_token=plain.eos_token,
        chat_template=plain.chat_template,
        padding_side="left",
        model_specific_special_tokens=special,
    )


def _llava(folder: Path) -> None:
    tokenizer = _tokenizer(image_token="<image>")
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(vocab_size=VOCAB_SIZE + 8, **TEXT),
        vision_config=transformers.CLIPVisionConfig(**TOWER, projection_dim=32),
        image_token_index=VOCAB_SIZE,
    )
    processor = transformers.LlavaProcessor(
        LlavaImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    _save(transformers.LlavaForConditionalGeneration(config), processor, folder)


def _gemma3(folder: Path) -> None:
    tokenizer = _tokenizer(
        boi_token="<start_of_image>",
        eoi_token="<end_of_image>",
        image_token="<image_soft_token>",
    )
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(vocab_size=VOCAB_SIZE + 8, **TEXT),
        vision_config=transformers.SiglipVisionConfig(**TOWER, vision_use_head=False),
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )
    processor = transformers.Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 56, "width": 56}), tokenizer, image_seq_length=4
    )
    _save(transformers.Gemma3ForConditionalGeneration(config), processor, folder)


def _save(model: Any, processor: Any, folder: Path) -> None:
    torch.manual_seed(0)
    model = type(model)(model.config).to(torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2-vl")
    GALLERY["qwen2-vl"].build(folder, is_planted=False)
    return folder


def _qwen2_audio(folder: Path) -> None:
    tokenizer = _tokenizer(
        audio_token="<|AUDIO|>", audio_bos_token="<|audio_bos|>", audio_eos_token="<|audio_eos|>"
    )
    config = transformers.Qwen2AudioConfig(
        text_config=transformers.Qwen2Config(vocab_size=VOCAB_SIZE + 8, **TEXT),
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "d_model": 32,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 48,
            "num_mel_bins": 80,
        },
        audio_token_index=tokenizer.audio_token_id,
    )
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(feature_size=80), tokenizer
    )
    _save(transformers.Qwen2AudioForConditionalGeneration(config), processor, folder)


def test_a_model_that_hears_and_reads_is_scanned_with_both(tmp_path: Path) -> None:
    _qwen2_audio(tmp_path)
    report = precheck.scan(str(tmp_path), dtypes=["float16"], attn_implementations=["sdpa"])
    check_silent(report)
    kinds = [probe.kind for probe in report.probes]
    assert kinds.count("sound") == 3
    assert "text" in kinds
    rows = [(layer.section, layer.module) for layer in report.runs[0].layers]
    assert rows[:3] == [
        (Section.AUDIO, "model.audio_tower.layers.0"),
        (Section.AUDIO, "model.audio_tower.layers.1"),
        (Section.PROJECTOR, "model.multi_modal_projector"),
    ]


@pytest.mark.parametrize(
    ("build", "projector"),
    [
        pytest.param(_llava, "model.multi_modal_projector", id="llava"),
        pytest.param(_gemma3, "model.multi_modal_projector", id="gemma3"),
    ],
)
def test_other_families_are_scanned_with_images(
    build: Callable[[Path], None], projector: str, tmp_path: Path
) -> None:
    build(tmp_path)
    report = precheck.scan(str(tmp_path))
    check_silent(report)
    images = [probe.name for probe in report.probes if probe.kind == "image"]
    # every image is scaled to one size: a drawn one and a blank one are enough
    assert images == ["image_112x112", "image_blank"]
    rows: dict[Section, list[str]] = {section: [] for section in Section}
    for layer in report.runs[0].layers:
        rows[layer.section].append(layer.module)
    assert len(rows[Section.VISION]) in {2, 3}  # LLaVA leaves the last layer out
    assert rows[Section.PROJECTOR] == [projector]
    assert len(rows[Section.DECODER]) == 2


def test_what_was_not_fed_stands_beside_safe(qwen2_vl: Path) -> None:
    report = precheck.scan(str(qwen2_vl), dtypes=["float32"], attn_implementations=["sdpa"])
    assert any(name.startswith("videos") for name in report.coverage.probes_not_run)
    assert headline(report).words.endswith("; not tried: videos")


def test_a_streamed_scan_with_images_has_the_bits_of_a_resident_one(qwen2_vl: Path) -> None:
    streamed = precheck.scan(str(qwen2_vl), **QUICK)
    resident = precheck.scan(str(qwen2_vl), resident=True, **QUICK)
    assert [run.layers for run in streamed.runs] == [run.layers for run in resident.runs]
    assert [run.logits for run in streamed.runs] == [run.logits for run in resident.runs]


def test_image_logits_are_those_of_a_plain_forward(qwen2_vl: Path) -> None:
    checkpoint = open_checkpoint(str(qwen2_vl), observe=lambda _: None)
    report = precheck.scan(
        str(qwen2_vl), dtypes=["float32"], attn_implementations=["sdpa"], quick=True
    )
    images = [probe for probe in report.probes if probe.kind == "image"]
    assert len(images) == 1  # --quick takes the smallest
    processor: Any = load_processor(checkpoint)
    asked = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "Describe this image."}],
            }
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    inputs = processor(text=[asked], images=[[draw(IMAGES[0])]], return_tensors="pt")
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        qwen2_vl, dtype=torch.float32, attn_implementation="sdpa"
    )
    with torch.no_grad():
        hidden = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    assert inputs["input_ids"].numel() == images[0].num_tokens
    projected = next(x for x in report.runs[0].layers if x.section is Section.PROJECTOR)
    assert projected.abs_max == float(hidden.pooler_output.abs().max())


def test_weights_are_read_once_although_text_passes_no_tower(qwen2_vl: Path) -> None:
    steps: list[Any] = []
    precheck.scan(str(qwen2_vl), observe=steps.append, **QUICK)
    last = [step for step in steps if hasattr(step, "bytes_read")][-1]
    assert last.bytes_read <= last.total_bytes
    assert last.bytes_read > 0.8 * last.total_bytes


@pytest.mark.parametrize("missing", ["preprocessor_config.json", "broken"])
def test_an_image_model_without_a_working_processor_says_so(
    missing: str, qwen2_vl: Path, tmp_path: Path
) -> None:
    names = {path.name for path in qwen2_vl.iterdir()}
    for name in names - {"processor_config.json", "preprocessor_config.json"}:
        (tmp_path / name).symlink_to(qwen2_vl / name)
    if missing == "broken":
        (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Nothing"}')
    report = precheck.scan(str(tmp_path), quick=True, **QUICK)
    (finding,) = (finding for finding in report.findings if finding.code == "PC902")
    assert "image probes" in finding.message
    assert ("no processor" in finding.message) == (missing != "broken")
    assert finding.severity is Severity.WARNING
    assert {run.verdict for run in report.runs} == {Verdict.SAFE}


def test_a_processor_that_fails_on_an_image_is_named(
    qwen2_vl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        chat_template = None
        image_processor = tokenizer = object()
        image_token = "<image>"

        def __call__(self, **_: Any) -> Any:
            raise ZeroDivisionError("no pixels")

    monkeypatch.setattr("precheck.measure.probes.media_batches.load_processor", lambda _: Failing())
    checkpoint = open_checkpoint(str(qwen2_vl), observe=lambda _: None)
    media = Processor(checkpoint, accepts={"input_ids", "pixel_values"}, vocab_size=9).builtin(
        quick=False
    )
    assert media.batches == ()
    assert media.not_run[0] == ("image_112x112 (the processor fails: ZeroDivisionError: no pixels)")


def test_images_of_the_users_own_are_probed(qwen2_vl: Path, tmp_path: Path) -> None:
    Image.new("RGB", (84, 56), (9, 99, 200)).save(tmp_path / "sea.png")
    about = ImagePrompt(text="What is this?", images=(str(tmp_path / "sea.png"),))
    prompts: list[Prompt] = [about, "Hello"]
    report = precheck.scan(str(qwen2_vl), prompts=prompts, quick=True, **QUICK)
    assert [(probe.name, probe.kind) for probe in report.probes] == [
        ("prompt_2", "text"),
        ("prompt_1", "image"),
    ]


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_an_image_that_cannot_be_read_is_a_usage_error(
    content: bytes | None, qwen2_vl: Path, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "sea.png").write_bytes(content)
    prompt = ImagePrompt(text="What is this?", images=(str(tmp_path / "sea.png"),))
    with pytest.raises(UsageError, match=r"sea\.png"):
        precheck.scan(str(qwen2_vl), prompts=[prompt], **QUICK)


def test_images_for_a_model_of_text_are_a_usage_error(tmp_path: Path) -> None:
    Image.new("RGB", (84, 56)).save(tmp_path / "sea.png")
    prompt = ImagePrompt(text="What is this?", images=(str(tmp_path / "sea.png"),))
    with pytest.raises(UsageError, match="the model takes no images"):
        precheck.scan("demo:qwen2-eager", prompts=[prompt], **QUICK)


def test_a_model_that_only_hears_needs_its_processor(tmp_path: Path) -> None:
    GALLERY["whisper-clamp"].build(tmp_path)
    for file in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / file).unlink(missing_ok=True)
    with pytest.raises(UnsupportedModelError, match="the checkpoint has no processor"):
        precheck.scan(str(tmp_path), **QUICK)


def test_packaged_media_are_the_same_everywhere() -> None:
    for probe in IMAGES:
        image = draw(probe)
        assert (image.size, image.mode) == ((probe.width, probe.height), "RGB")
        assert image.tobytes() == draw(probe).tobytes()
    for sound in sounds().values():
        assert sound.shape == (32_000,)
        assert abs(sound).max() <= 1


def test_the_prompts_file_takes_images_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"text": "What?", "images": ["a.png", "/b.png"]}))
    assert read_prompts(file) == (
        ImagePrompt(text="What?", images=(str(tmp_path / "a.png"), "/b.png")),
    )
    file.write_text(json.dumps({"text": "What?", "images": [1]}))
    with pytest.raises(UsageError, match='"images" contains something other than paths'):
        read_prompts(file)
