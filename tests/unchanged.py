"""Proves that a change of the package's layout changed nothing that a user sees.

``save`` runs one checkout of precheck and keeps all it says: the report on every built-in model and
on a tiny model of thirty architectures, in every format; what ``fix`` prints and writes; what is
known of findings and devices; every ``--help``; and what wrong input is answered with. ``compare``
then wants the same bytes of two checkouts:

    make unchanged ARGS="models"
    make unchanged ARGS="save before --package OLD"
    make unchanged ARGS="save after"
    make unchanged ARGS="compare before after"

It knows nothing of the package but its command line and its public names, so that it runs with
every layout. Both are saved on one machine, with the same libraries and the same models: another
processor adds up in another order. What may differ all the same is ``_LEFT_OUT`` and
``_elsewhere``, nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import io
import itertools
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import precheck

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.zoo.build import Kind

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "build" / "unchanged" / "models"
NUM_MODELS = {"causal": 20, "seq2seq": 4, "image-text": 6}
MIXTURES = ("mixtral", "qwen3_moe")
"""Taken in any case: experts have code of their own."""
LARGEST = 5e6
"""Parameters of a model that is quick to scan."""
FIXED = ("gemma3-residual", "llama-product", "qwen2-eager")
"""A recipe, a rescaling, another attention."""
FORMATS = (".txt", ".json", ".md", ".html", ".sarif", ".toml")
INTERRUPTED = 130
"""Exit code."""
NUM_LINES = 6
"""That are shown of a file that differs."""

_LEFT_OUT = (
    (r"\babout [\d,.]+ (second|minute|hour)s?\b", "about N seconds"),
    (r"\([\d.,]+ [KMGT]iB allowed\)", "(N GiB allowed)"),  # memory that is free just now
    (r"everything else [\d.,]+ [KMGT]iB", "everything else N GiB"),  # what the process has
    (r"\ballow [\d.,]+ [KMGT]iB with --max-memory", "allow N GiB with --max-memory"),
    (r"(?m)^Here\n(?:.+\n)+", "Here\n(this machine)\n"),  # precheck gpus
    (r"(?<=/)(\.[\w.-]+?|precheck)-[a-z0-9_]{8}(?![\w.-])", r"\1-TEMP"),  # of tempfile.mkdtemp
)
"""What the time of day, the load and chance decide, and what is said instead; ``Here`` is the only
environment that is printed without a report."""

_HELP = ("scan", "report", "diff", "fix", "hunt", "explain", "demo", "gpus", "env")
_ALONE: dict[str, list[str]] = {
    "nothing": [],
    "version": ["--version"],
    "help": ["--help"],
    **{f"help-{name}": [name, "--help"] for name in _HELP},
    "demo": ["demo"],
    "explain": ["explain"],
    "explain-one": ["explain", "PC301"],
    "gpus": ["gpus"],
    "unknown-command": ["scna", "demo:qwen2-eager"],
    "no-model": ["scan"],
    "no-folder": ["scan", "./nowhere"],
    "no-report": ["report", "nowhere.json"],
    "scan": ["scan", "demo:llama-product", "--quick", "--fail-on", "never"],
}
"""In a process of its own each: what one command imports must not be there for the next."""

_TOLD: dict[str, list[str]] = {
    "gallery": ["demo", "--scan"],
    "selftest": ["env", "--selftest"],
    "sums": ["gpus", "--check"],
    **{f"gpu-{name}": ["gpus", name] for name in ("T4", "A100", "H100", "sm_75", "gfx942")},
    **{f"wide-{name}": [name, "--help"] for name in _HELP},
}

_OPTIONS: dict[str, list[str]] = {
    "quick": ["demo:qwen2-eager", "--quick", "--generate", "4"],
    "static": ["demo:qwen2-eager", "--static", "--gpu", "T4", "--gpu", "A100"],
    "gpus": ["demo:llama-product", "--quick", "--gpu", "T4", "--gpu", "sm_90", "--gpu", "gfx942"],
    "sums": ["demo:llama-product", "--quick", "--accumulation", "float16"],
    "prompts": ["demo:gemma-prompt", "--prompts", "prompts.jsonl", "--prompt", "twelve 12"],
    "builtin": ["demo:gemma-prompt", "--prompt", "twelve 12", "--builtin-probes", "--redact"],
    "capsule": ["demo:qwen2-eager", "--quick", "--capsule", "capsule"],
    "resident": ["demo:qwen3-headroom", "--resident", "--max-memory", "4GiB"],
    "required": ["demo:qwen2-eager", "--quick", "--require", "float16+eager", "--all-layers"],
    "chosen": ["demo:left-padding", "--dtype", "fp16", "--attn", "eager,sdpa", "--quiet"],
}
"""Scans that are asked for something else than the defaults."""

_QWEN = "demo:qwen2-eager"
_SAVED = "gallery/qwen2-eager/report.json"
_WRONG: dict[str, list[str]] = {
    "unknown-demo": ["scan", "demo:nothing"],
    "empty-name": ["scan", ""],
    "hub-offline": ["scan", "nobody/nothing"],
    "no-config": ["scan", "empty"],
    "dtype": ["scan", _QWEN, "--dtype", "float3"],
    "no-dtype": ["scan", _QWEN, "--dtype", ""],
    "attn": ["scan", _QWEN, "--attn", "nonsense"],
    "no-attn": ["scan", _QWEN, "--attn", ","],
    "memory": ["scan", _QWEN, "--max-memory", "4parsecs"],
    "little-memory": ["scan", _QWEN, "--max-memory", "1KiB"],
    "require": ["scan", _QWEN, "--require", "float16"],
    "gpu": ["scan", _QWEN, "--gpu", "T5"],
    "suffix": ["scan", _QWEN, "-o", "report.doc"],
    "no-place": ["scan", _QWEN, "-o", "nowhere/report.json"],
    "prompt": ["scan", _QWEN, "--prompt", ""],
    "no-prompts": ["scan", _QWEN, "--prompts", "nowhere.txt"],
    "prompts": ["scan", _QWEN, "--prompts", "wrong.jsonl"],
    "device": ["scan", _QWEN, "--device", "tpu"],
    "generate": ["scan", _QWEN, "--generate", "-1"],
    "static-prompt": ["scan", _QWEN, "--static", "--prompt", "x"],
    "static-capsule": ["scan", _QWEN, "--static", "--capsule", "other"],
    "accumulation": ["scan", _QWEN, "--accumulation", "int8"],
    "fail-on": ["scan", _QWEN, "--fail-on", "maybe"],
    "format": ["scan", _QWEN, "--format", "pdf"],
    "flag": ["scan", _QWEN, "--frobnicate"],
    "no-baseline": ["scan", _QWEN, "--baseline", "nowhere.toml"],
    "not-json": ["report", "wrong.jsonl"],
    "not-a-report": ["report", "prompts.jsonl"],
    "no-gate": ["report", _SAVED, "--require", "float16+sdpa"],
    "not-a-baseline": ["report", _SAVED, "--baseline", "wrong.jsonl", "--fail-on", "error"],
    "diff": ["diff", _SAVED, "nowhere.json"],
    "diff-one": ["diff", _SAVED],
    "fix-nowhere": ["fix", _QWEN],
    "fix-there": ["fix", _QWEN, "-o", "gallery"],
    "fix-dtype": ["fix", _QWEN, "-o", "fixed", "--for", "int4"],
    "fix-bits": ["fix", _QWEN, "-o", "fixed", "--headroom-bits", "9"],
    "fix-other": ["fix", "demo:t5-half", "-o", "fixed", "--report", _SAVED],
    "explain": ["explain", "PC999"],
    "gpus": ["gpus", "T5"],
    "demo": ["demo", "nothing"],
    "demo-nowhere": ["demo", "qwen2-eager"],
    "selftest": ["env", "--selftest", "--device", "tpu"],
}


# models


def make_models(folder: Path) -> None:
    """Saves a tiny model of each chosen architecture, once for all that is compared."""
    # Only this needs the tests' own models; what they import moves with the layout.
    from tests.zoo.build import NotBuiltError, build, kinds  # noqa: PLC0415

    every = sorted(kinds(), key=lambda kind: (kind.task, kind.model_type, kind.class_name))
    pinned = [kind for kind in every if kind.task == "causal" and kind.model_type in MIXTURES]
    for task, number in NUM_MODELS.items():
        of_task = [kind for kind in every if kind.task == task and kind not in pinned]
        first = [kind for kind in pinned if kind.task == task]
        for kind in first:
            _save_model(kind, build(kind), folder)
        for candidates in _spread(of_task, number - len(first)):
            for kind in candidates:
                with contextlib.suppress(NotBuiltError):
                    model = build(kind)
                    if model.num_parameters() <= LARGEST:
                        _save_model(kind, model, folder)
                        break


def _spread(kinds: Sequence[Kind], number: int) -> Iterator[Sequence[Kind]]:
    """As many even parts as models are wanted: the first of each that is built is taken."""
    for index in range(number):
        yield kinds[index * len(kinds) // number : (index + 1) * len(kinds) // number]


def _save_model(kind: Kind, model: Any, folder: Path) -> None:
    from tests.tiny_models import tiny_tokenizer  # noqa: PLC0415  as in make_models

    place = folder / f"{kind.task}-{kind.model_type}"
    model.save_pretrained(place)
    tiny_tokenizer().save_pretrained(place)
    _tell(f"{place.name}: {kind.class_name}")


# save


def save(folder: Path, *, package: Path, models: Path) -> None:
    """Runs the checkout at ``package`` in a folder of its own, and keeps what it left there."""
    if not (package / "precheck" / "__init__.py").is_file():
        sys.exit(f"no precheck package in {str(package)!r}")
    if not any(models.glob("*/config.json")):
        sys.exit(f"no models in {str(models)!r}; make them: unchanged.py models {models}")
    if folder.exists():
        sys.exit(f"it is there already: {str(folder)!r}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="unchanged-") as made:
        work = Path(made).resolve()
        (work / "models").symlink_to(models.resolve(), target_is_directory=True)
        # -P: neither this folder nor the working one is looked in for modules.
        command = [sys.executable, "-P", str(Path(__file__).resolve()), "drive", str(package)]
        subprocess.run(command, cwd=work, env=_environment(work, package), check=True)  # noqa: S603  ours
        number = _keep(work, folder)
    _tell(f"{number} files in {folder} after {time.monotonic() - began:.0f} seconds")


def _environment(work: Path, package: Path) -> dict[str, str]:
    """Variables of the process: one thread, no network, no colours, and caches that are empty."""
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ
    }
    return {
        **inherited,
        "PYTHONPATH": str(package.resolve()),
        "PYTHONHASHSEED": "0",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(work / "cache"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "COLUMNS": "80",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "LC_ALL": "C.UTF-8",
    }


def _keep(work: Path, folder: Path) -> int:
    """Copies text without what is left out, and of weights their hash; says how many files."""
    number = 0
    for path in sorted(work.rglob("*")):
        name = path.relative_to(work)
        if not path.is_file() or name.parts[0] == "models":
            continue
        if name.parts[0] == "cache" and name.parts[:2] != ("cache", "precheck"):
            continue  # other libraries'
        content = path.read_bytes()
        kept = folder / _normalised(str(name), work)
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept.write_bytes(_normalised(content.decode(), work).encode())
        except UnicodeDecodeError:
            kept.write_text(f"sha256 {hashlib.sha256(content).hexdigest()}\n", encoding="utf-8")
        number += 1
    return number


def _normalised(text: str, work: Path) -> str:
    text = text.replace(str(work), "WORK")
    for pattern, instead in _LEFT_OUT:
        text = re.sub(pattern, instead, text)
    return text


def _elsewhere(plain: dict[str, Any]) -> dict[str, Any]:
    """The report as if a machine without a name had made it; its libraries stay."""
    environment = plain["environment"]
    environment |= {"python": "3", "platform": "Linux", "cpu": "CPU", "memory_bytes": 1 << 34}
    for device in environment["devices"]:
        device |= {"name": "CPU", "memory_bytes": 1 << 34, "memory_free_bytes": None}
    return plain


# drive: in the process that has the other checkout's package


class Ended(NamedTuple):
    """What one command line came to."""

    code: object
    out: str
    err: str


def drive(package: Path) -> None:
    """Everything that is saved, in the working folder."""
    if not Path(precheck.__file__).is_relative_to(package.resolve()):
        sys.exit(f"the package is {precheck.__file__!r} (expected one in {str(package)!r})")
    Path("empty").mkdir()
    Path("prompts.jsonl").write_text('{"text": "Sixteen, 17."}\n{"token_ids": [5, 6, 7]}\n')
    Path("wrong.jsonl").write_text('{"text": 1}\n{\n')
    _each("alone", _ALONE, _run_alone)
    _scan_gallery()
    _scan_zoo()
    for name, arguments in _OPTIONS.items():
        _scan_by_command(Path("options", name), arguments)
    for path in sorted((ROOT / "tests" / "data" / "reports").glob("*.json")):
        place = Path("earlier", path.stem)
        place.mkdir(parents=True)
        shutil.copy(path, place / "report.json")
        _render(place)
    _differences()
    _each("told", _TOLD, _run)
    _each("explained", {code: ["explain", code] for code in _codes()}, _run)
    _each("wrong", _WRONG, _run)
    fixes = {name: ["fix", f"demo:{name}", "-o", f"fixed/{name}"] for name in FIXED}
    Path("fixed").mkdir()
    _each("fixes", fixes, _run)
    _each("demos", {"whisper-clamp": ["demo", "whisper-clamp", "-o", "demos/whisper-clamp"]}, _run)
    _live()


def _each(
    folder: str, commands: dict[str, list[str]], run: Callable[[Sequence[str]], Ended]
) -> None:
    began = time.monotonic()
    for name, arguments in commands.items():
        os.environ["COLUMNS"] = "200" if name.startswith("wide-") else "80"
        _record(Path(folder, name), arguments, run(arguments))
    _tell(f"{folder}: {len(commands)} commands, {time.monotonic() - began:.0f} seconds")


def _run(arguments: Sequence[str]) -> Ended:
    """The command in this process: importing torch anew for each would take most of the time."""
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    sys.argv = ["precheck", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module("precheck", run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    if code == INTERRUPTED:  # it was this process that was told to end
        raise KeyboardInterrupt
    return Ended(code, out.getvalue(), err.getvalue())


def _run_alone(arguments: Sequence[str]) -> Ended:
    command = [sys.executable, "-P", "-m", "precheck", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  ours
    return Ended(done.returncode, done.stdout, done.stderr)


def _record(path: Path, arguments: Sequence[str], ended: Ended) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_name(f"{path.name}.said").write_text(
        f"$ precheck {' '.join(map(repr, arguments))}\nexit code {ended.code}\n"
        f"--- stdout\n{ended.out}--- stderr\n{ended.err}",
        encoding="utf-8",
    )


def _scan_gallery() -> None:
    listed = re.findall(r"(?m)^demo:(\S+)", _run(["demo"]).out)
    for name in listed:
        _scan_by_command(Path("gallery", name), [f"demo:{name}"])


def _scan_by_command(place: Path, arguments: Sequence[str]) -> None:
    began = time.monotonic()
    os.environ["COLUMNS"] = "80"
    report = place / "report.json"
    place.mkdir(parents=True)
    command = ["scan", *arguments, "-o", str(report)]
    _record(place / "scan", command, _run(command))
    report.write_text(json.dumps(_elsewhere(json.loads(report.read_text(encoding="utf-8")))))
    _render(place)
    _tell(f"{place}: {time.monotonic() - began:.0f} seconds")


def _scan_zoo() -> None:
    """By the function, where the built-in models are scanned by the command."""
    for model in sorted(Path("models").iterdir()):
        began = time.monotonic()
        place = Path("zoo", model.name)
        place.mkdir(parents=True)
        try:
            plain = precheck.scan(model, device="cpu").to_dict()
        except Exception as error:  # noqa: BLE001  a refusal is to stay the same too
            (place / "error").write_text(f"{type(error).__name__}: {error}\n", encoding="utf-8")
        else:
            (place / "report.json").write_text(json.dumps(_elsewhere(plain)), encoding="utf-8")
            _render(place)
        _tell(f"{place}: {time.monotonic() - began:.0f} seconds")


def _render(place: Path) -> None:
    """Every format of the report in this folder, and what the gate says of it."""
    report = str(place / "report.json")
    files = [str(place / f"written{suffix}") for suffix in FORMATS]
    redacted = [str(place / f"redacted{suffix}") for suffix in FORMATS]
    known = place / "known.toml"
    commands = {
        "files": [*_outputs(files), "--card", str(place / "card.md")],
        "redacted": [*_outputs(redacted), "--redact", "--format", "card"],
        "layers": ["--all-layers"],
        "wide": [],
        "wide-layers": ["--all-layers"],
        "gate": ["--fail-on", "warning", "--format", "baseline"],
        "unexplained": ["--fail-on", "error", "--baseline", files[-1]],
        "excused": ["--fail-on", "error", "--baseline", str(known), "--format", "json"],
    }
    for name, flags in commands.items():
        os.environ["COLUMNS"] = "200" if name.startswith("wide") else "80"
        command = ["report", report, *flags]
        _record(place / name, command, _run(command))
        if name == "files":
            written = Path(files[-1]).read_text(encoding="utf-8")
            known.write_text(written.replace('reason = ""', 'reason = "known"'), encoding="utf-8")
    read = precheck.read_report(report).to_dict()
    (place / "read.json").write_text(json.dumps(read, indent=1), encoding="utf-8")


def _outputs(files: Sequence[str]) -> list[str]:
    return [part for file in files for part in ("-o", file)]


def _differences() -> None:
    """Each built-in model against the next, and one against itself."""
    reports = sorted(map(str, Path("gallery").glob("*/report.json")))
    pairs = [*itertools.pairwise(reports), (reports[0], reports[0])]
    commands = {
        f"{look}{number}": ["diff", *pair, "--format", "json" if look == "json-" else "table"]
        for number, pair in enumerate(pairs)
        for look in ("json-", "narrow-", "wide-")
    }
    _each("differences", commands, _run)


def _codes() -> list[str]:
    return re.findall(r"(?m)^(PC\d+)", _run(["explain"]).out)


def _live() -> None:
    """What ``watch`` says of a model that breaks, and ``apply`` of a recipe that is none."""
    import torch  # noqa: PLC0415  commands are not to find it imported
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    _run(["demo", "qwen2-eager", "-o", "demos/qwen2-eager"])
    model = AutoModelForCausalLM.from_pretrained(
        "demos/qwen2-eager", dtype=torch.float16, attn_implementation="eager"
    )
    with precheck.watch(model) as watch, torch.no_grad():
        model(input_ids=torch.arange(3, 40)[None])
    said = [repr(watch.first_overflow), repr(watch.broken_forward)]
    try:
        precheck.apply(model, "prompts.jsonl")
    except Exception as error:  # noqa: BLE001  its text is what is wanted
        said.append(f"{type(error).__name__}: {error}")
    Path("live.said").write_text("\n".join(said) + "\n", encoding="utf-8")


# compare


def compare(before: Path, after: Path) -> int:
    """Prints what differs between two folders; how many files do."""
    for folder in (before, after):
        if not folder.is_dir() or not _files(folder):
            sys.exit(f"nothing is saved in {str(folder)!r}")
    ours, theirs = _files(before), _files(after)
    differing = 0
    for name in sorted(ours | theirs):
        if name not in ours or name not in theirs:
            _print(f"{name}: only in {before if name in ours else after}")
        elif (before / name).read_bytes() != (after / name).read_bytes():
            _print(f"{name}: differs\n{_first_lines(before / name, after / name)}")
        else:
            continue
        differing += 1
    same = len(ours | theirs) - differing
    _print(f"{same} files identical" + (f", {differing} are not" if differing else ""))
    return differing


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _first_lines(before: Path, after: Path) -> str:
    ours, theirs = (path.read_text(encoding="utf-8").splitlines() for path in (before, after))
    changed = [
        line[:200]
        for line in difflib.unified_diff(ours, theirs, lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    left = [f"    ({len(changed) - NUM_LINES} lines more)"] if len(changed) > NUM_LINES else []
    return "\n".join([*(f"    {line}" for line in changed[:NUM_LINES]), *left])


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _tell(text: str) -> None:
    """How far it is, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> None:
    """Makes models, saves, or compares."""
    parser = argparse.ArgumentParser(prog="unchanged", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("models", help="make the models that all saves scan")
    making.add_argument("folder", type=Path, nargs="?", default=MODELS)
    saving = commands.add_parser("save", help="run a checkout, and keep all it says")
    saving.add_argument("folder", type=Path)
    saving.add_argument("--package", type=Path, default=ROOT, help="a checkout; else this one")
    saving.add_argument("--models", type=Path, default=MODELS)
    comparing = commands.add_parser("compare", help="exit code 1: they are not the same")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    driving = commands.add_parser("drive", help="what save starts")
    driving.add_argument("package", type=Path)
    options = parser.parse_args()
    match options.command:
        case "models":
            make_models(options.folder)
        case "save":
            save(options.folder, package=options.package.resolve(), models=options.models)
        case "compare":
            sys.exit(compare(options.before, options.after) > 0)
        case _:
            drive(options.package)


if __name__ == "__main__":
    main()
