"""Fetches the source of the engines whose facts are in ``engines.toml``: make facts does.

Usage: ``python tests/facts/fetch_engines.py FOLDER [--newest]``. The files come from the package
index that pip is configured with, and are unpacked, not installed: they need other libraries, and
only their text is read.
"""

from __future__ import annotations

import html
import re
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from pathlib import Path
from urllib.parse import urljoin

from packaging.version import Version

from precheck.facts.engines import engine

WANTED = (
    ("vllm", "vllm", ".tar.gz"),
    ("sglang", "sglang", ".whl"),
    ("llama-cpp-python", "llama_cpp", ".tar.gz"),
)
"""Distribution, engine, and the kind of file that holds the Python source."""

FILES = (
    "vllm/config/model.py",
    "vllm/config/cache.py",
    "vllm/platforms/cuda.py",
    "vllm/model_executor/layers/quantization/auto_gptq.py",
    "vllm/model_executor/layers/quantization/auto_awq.py",
    "vllm/model_executor/layers/quantization/fp8.py",
    "vllm/model_executor/layers/quantization/mxfp4.py",
    "sglang/srt/configs/model_config.py",
    "sglang/srt/model_executor/model_runner_components/load_model_utils.py",
    "sglang/srt/arg_groups/model_override_base.py",
    "vllm/model_executor/models/registry.py",
    "vendor/llama.cpp/conversion/__init__.py",
    "vendor/llama.cpp/ggml/src/ggml-common.h",
    "vendor/llama.cpp/ggml/src/ggml-cpu/ggml-cpu.c",
    "vendor/llama.cpp/ggml/src/ggml-cuda/fattn-common.cuh",
    "vendor/llama.cpp/ggml/src/ggml-cuda/mmq.cuh",
    "vendor/llama.cpp/ggml/src/ggml-vulkan/vulkan-shaders/flash_attn_base.glsl",
)
FOLDER = "sglang/srt/models/"
"""Every module directly in it is wanted too."""


def index_url() -> str:
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        check=False,
    )
    return (told.stdout.strip() or "https://pypi.org/simple").rstrip("/")


def links(distribution: str) -> dict[str, str]:
    """Address of every file by its name."""
    page = f"{index_url()}/{distribution}/"
    with urllib.request.urlopen(page) as answer:  # noqa: S310  pip's own index
        text = answer.read().decode()
    return {
        name.strip(): urljoin(page, html.unescape(link))
        for link, name in re.findall(r'<a[^>]*href="([^"#]+)[^"]*"[^>]*>([^<]+)</a>', text)
    }


def version_of(name: str) -> Version:
    found = re.match(r"[A-Za-z_]+-(\d[^-]*?)(?:\.tar\.gz|-)", name)
    return Version(found[1] if found else "0")


def fetch(distribution: str, wanted: str | None, suffix: str, folder: Path) -> Version:
    files = {name: link for name, link in links(distribution).items() if name.endswith(suffix)}
    versions = {name: version_of(name) for name in files}
    released = [each for each in versions.values() if not each.is_prerelease]
    version = Version(wanted) if wanted else max(released)
    name = next(name for name, each in sorted(versions.items()) if each == version)
    archive = folder / name
    if not archive.exists():
        urllib.request.urlretrieve(files[name], archive)  # noqa: S310  pip's own index
    unpack(archive, folder)
    return version


def is_wanted(name: str) -> bool:
    module = name.removeprefix(FOLDER)
    return name in FILES or (module != name and "/" not in module and module.endswith(".py"))


def unpack(archive: Path, folder: Path) -> None:
    """Writes the wanted files, whatever folder they lie in inside the archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as whole:
            contents = {each: whole.read(each) for each in whole.namelist() if is_wanted(each)}
    else:
        contents = {}
        with tarfile.open(archive) as whole_tar:
            for member in whole_tar:
                inner = member.name.partition("/")[2]
                if is_wanted(inner) and (data := whole_tar.extractfile(member)) is not None:
                    contents[inner] = data.read()
    for name, content in contents.items():
        target = folder / name.removeprefix("vendor/llama.cpp/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for distribution, identity, suffix in WANTED:
        read = engine(identity).version.split()[-1]
        version = fetch(distribution, None if "--newest" in sys.argv else read, suffix, folder)
        print(f"{distribution} {version}; engines.toml was read from {read}")  # noqa: T201


if __name__ == "__main__":
    main()
