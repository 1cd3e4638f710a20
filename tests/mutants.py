"""Switches each detector off, one at a time, and tells whether a test notices: ``make mutants``.

Each mutation is made in a copy of the working tree. The tests nearest to it are run first, all that
may notice it after them; a mutation that no test notices is printed as SURVIVED, and the exit code
is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RULES = "precheck/judge/findings/rules.py"
JUDGING = (
    "tests/judge",
    "tests/gallery tests/measure/static/test_static.py tests/test_bad_input.py",
)
SECONDS = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """One change to one file; ``tests`` are tried in turn until one fails."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def off(file: str, function: str, value: str, *tests: str) -> Mutation:
    """The function returns ``value`` and does nothing."""
    return Mutation(
        name=f"{function} returns {value}",
        file=f"precheck/{file}",
        old=rf"((?:    )*)def {function}\((?:[^()]|\([^()]*\))*\)(?: -> [^\n]*)?:\n",
        new=rf"\g<0>\1    return {value}\n",
        tests=tests,
    )


CULPRITS = ("tests/measure/blame/test_detectors.py", "tests/measure/blame/test_culprits.py")
RULE_TESTS = "tests/judge/test_rules.py"
FP8_CACHE, OPERANDS = (
    "tests/measure/test_fp8_cache.py",
    "tests/measure/blame/test_attention_operands.py",
)
PATHS, READ = "tests/judge/test_float16_paths.py", "tests/measure/watch/test_operands.py"
ANSWERS, TEXTS = (
    "tests/measure/lockstep/figures/test_answers.py",
    "tests/measure/lockstep/figures/test_text_divergence.py",
)
SERVED, PROXY = "tests/served/test_plants.py", "tests/served/test_proxy.py"
SAVED_LOGITS = "tests/served/test_saved_logits.py"
CHARTS = "tests/render/test_charts.py"
POSITIONS, EVERY_PROMPT = "tests/judge/test_positions.py", "tests/judge/test_every_prompt.py"
LAYER_BOUNDS = "tests/measure/static/test_layer_bounds.py"
BOUNDS = "precheck/measure/bounds"
BOUNDED_EXPERTS, SHARED = (
    "tests/measure/bounds/test_experts.py",
    "tests/measure/bounds/test_shared.py",
)
FAKE_RESULTS = "tests/measure/trace/test_fake_results.py"
LONG_TEXT = "tests/measure/test_long_text.py"
REACH = "tests/measure/probes/test_reach.py"
SCALE_AUDIT = "tests/checkpoint/test_scale_audit.py"
NAMES, SCALES = "tests/checkpoint/test_names.py", "tests/checkpoint/test_scales.py"
EXAMINED = ("tests/measure/blame/test_examine.py", "tests/measure/blame/test_silence.py")
DETECTORS = (
    off("measure/blame/examine.py", "unexpected", "None", *CULPRITS),
    off("measure/blame/unit_call.py", "needs_second_look", "False", *CULPRITS),
    off("measure/blame/unit_call.py", "routed_nodes", "frozenset()", *CULPRITS),
    off("measure/blame/unit_call.py", "logits_in", "None", "tests/test_custom_code.py"),
    off("measure/watch/trees.py", "_is_dataclass", "False", "tests/test_custom_code.py"),
    Mutation(
        name="results forgets inputs that were written into",
        file="precheck/measure/watch/trees.py",
        old=r"if tensor\._version != version",
        new="if False",
        tests=("tests/test_custom_code.py",),
    ),
    off(
        "measure/blame/mechanisms.py", "_is_masked", "False", "tests/measure/blame/test_silence.py"
    ),
    off("measure/blame/masks.py", "mask_threshold", "MASK_SENTINEL", *EXAMINED),
    off(
        "measure/models/cast_tensors.py",
        "rounded_buffers",
        "{}",
        "tests/measure/models/test_cast_tensors.py",
    ),
    off(
        "measure/models/cast_tensors.py",
        "rounded_parameters",
        "()",
        "tests/measure/models/test_cast_tensors.py",
    ),
    off("measure/blame/attention_operands.py", "_is_normalised", "False", FP8_CACHE),
    off("measure/blame/attention_operands.py", "_value", "None", OPERANDS),
    off("measure/blame/attention_operands.py", "_key_projection", "None", FP8_CACHE),
    off("judge/findings/key_values.py", "_rounded", "[]", "tests/judge/test_key_values.py"),
    off("judge/findings/float16_paths.py", "_peaks", "{}", PATHS),
    off("judge/findings/float16_paths.py", "_is_taken", "True", PATHS),
    off("facts/float16_paths.py", "is_left_by", "False", PATHS),
    off("measure/watch/operands.py", "_is_weight", "False", READ),
    off("measure/watch/operands.py", "_fused_product", "None", READ),
    off("measure/watch/fused_scores.py", "value_sum", "None", READ),
    off("measure/blame/operand_nodes.py", "_is_mean_of_squares", "False", READ),
    off("measure/blame/operand_nodes.py", "_scaled", "scores", READ),
    off("facts/symptoms.py", "close_symptoms", "()", "tests/facts/test_symptoms.py"),
    off("judge/findings/divergence.py", "lost_on_odd_inputs", "iter(())", RULE_TESTS),
    off("judge/findings/divergence.py", "_where_it_starts", "run.layers[-1]", RULE_TESTS),
    off("judge/findings/divergence.py", "_is_in_the_score", "False", ANSWERS),
    off("measure/lockstep/figures/text_divergence.py", "_typical", "float(kl.mean())", TEXTS),
    off("measure/lockstep/figures/text_divergence.py", "_medium", '""', TEXTS),
    off("records/traces.py", "is_judged_alone", "False", TEXTS),
    off("measure/lockstep/figures/answers.py", "scores_of", "None", ANSWERS),
    off("measure/lockstep/figures/answers.py", "embeddings_of", "None", ANSWERS),
    off("measure/subject/pooling.py", "read_embedding", "Embedding()", ANSWERS),
    off("measure/subject/token_inputs.py", "can_generate", "True", ANSWERS),
    off("measure/subject/token_inputs.py", "input_embedding", "None", REACH),
    off("measure/probes/first_tokens.py", "_outliers", "[]", REACH),
    off("measure/probes/context.py", "context_tokens", "0", REACH),
    off("judge/findings/positions.py", "_far", "iter(())", POSITIONS),
    off("judge/findings/positions.py", "_cause", "None", POSITIONS),
    off("judge/findings/positions.py", "_overflows_at", "None", POSITIONS),
    off(
        "measure/watch/position_ops.py", "_is_straight", "False", "tests/measure/test_positions.py"
    ),
    off("measure/lockstep/continuing.py", "can_continue", "True", LONG_TEXT),
    off("measure/lockstep/figures/text_divergence.py", "_octaves", "[list(pieces)]", TEXTS),
    off("judge/gate.py", "_not_proved", "iter(())", EVERY_PROMPT),
    off("judge/findings/every_prompt.py", "near_and_open", "iter(())", EVERY_PROMPT),
    off("judge/findings/every_prompt.py", "scores", "iter(())", LAYER_BOUNDS),
    off("judge/findings/every_prompt.py", "residual_stream", "iter(())", LAYER_BOUNDS),
    off("measure/trace/stream.py", "_scaling", "1.0", LAYER_BOUNDS),
    off("measure/trace/stream.py", "_root", "None", LAYER_BOUNDS),
    off("measure/static/key_biases.py", "_bias", "None", "tests/measure/static/test_triage.py"),
    off("render/parts/headline.py", "_tried", '""', "tests/render/test_console.py"),
    off("render/parts/charts/culprits.py", "culprits", "[]", CHARTS),
    off("render/parts/charts/headroom.py", "_got_there", "True", CHARTS),
    off("render/parts/charts/headroom.py", "_got_there", "False", CHARTS),
    off(
        "judge/findings/live.py",
        "cast_as_a_whole",
        "iter(())",
        "tests/measure/models/test_cast_tensors.py",
    ),
    off("measure/run_waves.py", "_run_alone", "None", "tests/measure/probes/test_padding.py"),
    off(
        "measure/probes/user_prompts.py",
        "padded_together",
        "iter(())",
        "tests/measure/probes/test_padding.py",
    ),
    off(
        "judge/findings/coverage.py",
        "run_one_by_one",
        "iter(())",
        "tests/measure/probes/test_padding.py",
    ),
    Mutation(
        name="a row of a layer's own padding is called a fault",
        file="precheck/measure/lockstep/attribution.py",
        old=r"if is_masked_row and",
        new="if False and",
        tests=("tests/measure/blame/test_silence.py",),
    ),
    Mutation(
        name="a unit that is called again adds to the states that its forward collects",
        file="precheck/measure/blame/second_look.py",
        old=r"Context\(\)\.run\(call\.module, ",
        new="call.module(",
        tests=("tests/measure/lockstep/test_collected_states.py",),
    ),
    Mutation(
        name="compiled blocks stay compiled",
        file="precheck/measure/machine/torch_settings.py",
        old=r'"torch\._dynamo" not in sys\.modules',
        new="True",
        tests=("tests/test_custom_code.py",),
    ),
    off(
        "measure/lockstep/symptom.py",
        "symptom_of",
        "None",
        "tests/measure/blame/test_culprits.py",
        "tests/gallery",
    ),
    off(
        "measure/watch/fused_scores.py",
        "raw_score_abs_max",
        "None",
        "tests/measure/lockstep/test_truth.py",
    ),
    off(
        "measure/lockstep/figures/routing.py",
        "experts",
        "None",
        "tests/measure/blame/test_detectors.py",
    ),
    off("measure/machine/memory.py", "is_out_of_memory", "False", "tests/test_fault_matrix.py"),
    off(
        "measure/models/model_dtypes.py",
        "kept_modules",
        "{}",
        "tests/measure/static/test_static.py",
    ),
    off("judge/devices/standing.py", "_not_in_class", "None", "tests/gallery/test_advice.py"),
    off("judge/devices/standing.py", "_not_on_device", "None", "tests/gallery/test_advice.py"),
    off("judge/devices/standing.py", "lacks_dtype", "None", "tests/judge/test_recommend.py"),
    off(
        "judge/devices/standing.py",
        "_not_contradicted",
        "prediction",
        "tests/judge/test_decision_table.py",
    ),
    *(
        off(f"served/findings/{file}.py", function, "None", PROXY, SERVED)
        for file, functions in {
            "reading": ("other_tokens", "other_template", "shortened"),
            "probabilities": ("scaled", "cut_off", "penalised"),
            "likeness": ("drifting", "another_checkpoint", "like_none", "tokens_alone"),
            "writing": ("no_numbers", "sampled", "changed_by_company"),
        }.items()
        for function in functions
    ),
    Mutation(
        name="other kernels of a format are as near as those that store the same numbers",
        file="precheck/served/likelihood.py",
        old=r"KERNELS \* self\.own",
        new="KERNELS * self.rounding + SAME_FORMAT * self.of_format",
        tests=("tests/served/test_formats.py",),
    ),
    off("served/gate.py", "is_met", "True", "tests/served/test_bad_servers.py"),
    off("served/runs/file.py", "_problem", "None", SAVED_LOGITS),
    off("served/runs/saved.py", "_cut", "answer", SAVED_LOGITS),
    off("facts/architectures.py", "is_served", "True", "tests/judge/test_decision_table.py"),
    off("judge/findings/cures.py", "may_be_rescaled", "True", "tests/judge/test_remedies.py"),
    off("judge/advice/remedies.py", "_is_handed_on", "False", "tests/judge/test_remedies.py"),
    off("judge/advice/static.py", "_may_overflow", "False", "tests/judge/test_static_advice.py"),
    off("measure/blame/graph.py", "_projects_data", "False", "tests/measure/blame/test_live.py"),
    Mutation(
        name="encoders without logits are not compared",
        file="precheck/judge/advice/closeness.py",
        old=r"if ours\.relative_error is not None",
        new="if False",
        tests=("tests/judge/test_recommend.py",),
    ),
    Mutation(
        name="text alone supersedes what is documented of images",
        file="precheck/judge/findings/unmeasured.py",
        old=r" and fact\.inputs in \{None, \*kinds\}",
        new="",
        tests=("tests/judge/test_rules.py",),
    ),
    off("checkpoint/config.py", "_refuse_code", "None", "tests/checkpoint/test_source.py"),
    off("checkpoint/config.py", "_check_architectures", "None", "tests/test_bad_input.py"),
    off("checkpoint/safetensors_shard.py", "check_entry", "None", "tests/test_bad_input.py"),
    off("checkpoint/formats.py", "_detail", '""', "tests/checkpoint/test_source.py"),
    off("checkpoint/faults/renamings.py", "find_renamings", "()", NAMES),
    off("checkpoint/faults/renamings.py", "_explains", "True", NAMES),
    off("checkpoint/faults/scales.py", "unscaled_weights", "iter(())", SCALES),
    off("checkpoint/faults/scales.py", "unread_scales", "iter(())", SCALES),
    off("checkpoint/faults/scale_audit.py", "_losing", "zero & False", SCALE_AUDIT),
    off("checkpoint/faults/scale_audit.py", "_of_numbers", "scales", SCALE_AUDIT),
    off("checkpoint/faults/scale_audit.py", "_lacking", "set()", SCALE_AUDIT),
    off("checkpoint/faults/scale_audit.py", "_activation_faults", "iter(())", SCALE_AUDIT),
    off("checkpoint/faults/scale_audit.py", "_cache", "iter(())", SCALE_AUDIT),
    off("checkpoint/faults/scale_audit.py", "_inputs", "iter(())", SCALE_AUDIT),
    off("records/stored.py", "explained", "frozenset()", SCALE_AUDIT),
    off("checkpoint/faults/zeros.py", "lost_weights", "()", NAMES),
    off("checkpoint/faults/zeros.py", "_does_nothing", "False", NAMES),
    off("checkpoint/decoded.py", "has_zero_scales", "False", SCALES),
    off("measure/models/matching.py", "_untied", "iter(())", NAMES),
    off("measure/models/ties.py", "are_equal", "False", NAMES),
    off("measure/models/matching.py", "_tieable", "iter(())", NAMES),
    off("records/stored.py", "is_shard", "False", NAMES),
    off("libraries.py", "_check_import", "None", "tests/test_libraries.py"),
    off(
        "checkpoint/config.py",
        "take_attention",
        "None",
        "tests/measure/models/test_named_attention.py",
    ),
    off(
        "checkpoint/config.py",
        "_check_attention",
        "None",
        "tests/measure/models/test_named_attention.py",
    ),
    off("checkpoint/config.py", "_refuse_endless_stacks", "None", "tests/test_hostile.py"),
    off("checkpoint/outline/plausible_size.py", "count", "None", "tests/test_hostile.py"),
    off(
        "checkpoint/gguf/weights.py",
        "faults_of_blocks",
        "iter(())",
        "tests/checkpoint/test_gguf.py",
    ),
    off(
        "checkpoint/gguf/header.py", "_check_apart", "None", "tests/checkpoint/test_gguf_blocks.py"
    ),
    off("checkpoint/gguf/recipes.py", "_check_found", "None", "tests/checkpoint/test_gguf.py"),
    off(
        "judge/findings/unmeasured.py",
        "_not_followed",
        "''",
        "tests/measure/static/test_data_flow.py",
    ),
    off("checkpoint/gguf/header.py", "_count", "None", "tests/checkpoint/test_gguf_blocks.py"),
    off("libraries.py", "check_libraries", "None", "tests/test_libraries.py"),
    off("cure/objections.py", "objections", "()", "tests/cure"),
    off("checkpoint/rewriting.py", "check_room", "None", "tests/cure"),
    off("cure/scales/config_numbers.py", "find_settings", "{}", "tests/cure"),
    off("cure/scales/constraints.py", "divide", "None", "tests/cure/scales/test_scales.py"),
    off("measure/watch/peaks.py", "reduced_by_group", "None", "tests/cure/test_fused.py"),
    off("measure/watch/peaks.py", "reduced_to", "None", "tests/cure/test_fused.py"),
    *(
        Mutation(
            name=f"scales: {what} is required nowhere",
            file="precheck/cure/scales/constraints.py",
            old=r"        if form:\n",
            new=f'        if form and reason != "{what}":\n',
            tests=("tests/cure/scales/test_scales.py",),
        )
        for what in ("equal", "not_linear", "clamp", "constant", "result")
    ),
    Mutation(
        name="memory that runs out is called a bug",
        file="precheck/cli.py",
        old=r"except MemoryError:",
        new="except ZeroDivisionError:",
        tests=("tests/test_fault_matrix.py",),
    ),
    Mutation(
        name="signals are lost while a model is copied",
        file="precheck/signals.py",
        old=r"if handler is not None:  # one",
        new="if False:  # one",
        tests=("tests/test_signals.py",),
    ),
    Mutation(
        name="a second Ctrl-C falls into what the first one made",
        file="precheck/signals.py",
        old=r"if now - ended > SAME_SECONDS:",
        new="if True:",
        tests=("tests/test_signals.py", "tests/test_fault_matrix.py"),
    ),
    off("measure/bounds/moves.py", "_takes_last", "True", BOUNDED_EXPERTS),
    off("measure/bounds/shared.py", "_is_taken_over", "True", SHARED),
    off("measure/bounds/shared.py", "_has_equal_parts", "True", SHARED),
    Mutation(
        name="one expert stands for all",
        file=f"{BOUNDS}/products.py",
        old=r"for weight in weights:",
        new="for weight in weights[:1]:",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="a sum of routing weights may be 0",
        file=f"{BOUNDS}/reductions.py",
        old=r" and tensor\.least_largest > 0",
        new="",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="a sum over tokens is taken for one over experts",
        file=f"{BOUNDS}/reductions.py",
        old=r"not is_mean and dims == \(tensor\.rank - 1,\)",
        new="not is_mean",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="any sum of shares bounds any tensor",
        file=f"{BOUNDS}/elementwise.py",
        old=r"second\.share_of is first\.identity",
        new="second.share_of is not None",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="rounded routing weights are those before",
        file=f"{BOUNDS}/functions.py",
        old=r"    if step\.is_exact_cast:\n",
        new="    if True:\n",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="routing weights elsewhere are those before",
        file=f"{BOUNDS}/forms.py",
        old=r"            share_of=None,\n            identity=object\(\),\n",
        new="            identity=self.identity,\n",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="no text sends more tokens to an expert",
        file=f"{BOUNDS}/reductions.py",
        old=r" \* \(MOST_KEYS if step\.grows else 1\)",
        new="",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="experts take the tokens in their order",
        file=f"{BOUNDS}/moves.py",
        old=r"rows=replace\(image\.rows, ball=object\(\)\), token",
        new="token",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="all tokens are alike to an expert",
        file=f"{BOUNDS}/moves.py",
        old=r"if len\(firsts\) > 1 or",
        new="if",
        tests=(BOUNDED_EXPERTS,),
    ),
    Mutation(
        name="memory that nothing was written into is a copy",
        file=f"{BOUNDS}/rules.py",
        old=r" and step\.op\.name not in ALLOCATIONS",
        new="",
        tests=("tests/measure/bounds/test_rules.py",),
    ),
    Mutation(
        name="a remembered view has memory of its own",
        file="precheck/measure/trace/fake_results.py",
        old=r"storages\.index\(own\) if own in storages else None",
        new="None",
        tests=(FAKE_RESULTS,),
    ),
    Mutation(
        name="a file is not looked at again",
        file="precheck/checkpoint/shards.py",
        old=r"        opened, now = ",
        new=r"        return\n\g<0>",
        tests=("tests/checkpoint/test_reading.py",),
    ),
)


def rules() -> list[Mutation]:
    """Each rule finds nothing; of the rule for overflows, each mechanism's."""
    text = (ROOT / RULES).read_text(encoding="utf-8")
    found = [
        Mutation(
            name=f"{code} is never found",
            file=RULES,
            old=rf'(Rule\("{code}", "[^"]*", )[\w.]+(\))',
            new=r"\1lambda evidence: ()\2",
            tests=JUDGING,
        )
        for code in re.findall(r'Rule\("(PC\d+)"', text)
    ]
    mechanisms = (ROOT / "precheck/records/mechanism.py").read_text(encoding="utf-8")
    declared = mechanisms[mechanisms.index("class Mechanism") :]
    names = re.findall(
        r'^    [A-Z_]+ = "(\w+)"', declared[: declared.index("\n\n\n")], re.MULTILINE
    )
    return found + [
        Mutation(
            name=f"no overflow is put down to {name}",
            file=RULES,
            old=r"overflow\.reaches_output\(mechanism\)",
            new=f'(lambda evidence: ()) if mechanism == "{name}" else \\g<0>',
            tests=JUDGING,
        )
        for name in names
    ]


def is_caught(mutation: Mutation, copy: Path) -> bool:
    """Whether a test fails with it."""
    file = copy / mutation.file
    sound = file.read_text(encoding="utf-8")
    changed, count = re.subn(mutation.old, mutation.new, sound, count=1)
    if count != 1 or changed == sound:
        raise SystemExit(f"{mutation.name}: nothing to change in {mutation.file}")
    file.write_text(changed, encoding="utf-8")
    try:
        return any(not passes(tests.split(), copy) for tests in mutation.tests)
    finally:
        file.write_text(sound, encoding="utf-8")


def passes(tests: list[str], copy: Path) -> bool:
    """Whether they pass, in the copy."""
    try:
        ran = subprocess.run(  # noqa: S603  our own tests
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy)},
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:  # a test that hangs notices too
        return False
    return ran.returncode == 0


def main() -> None:
    """Try all, or those whose name contains one of the words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    words = parser.parse_args().words
    chosen = [
        each
        for each in (*DETECTORS, *rules())
        if not words or any(word in each.name for word in words)
    ]
    survived = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(
            ".venv", ".nox", ".git", "build", "__pycache__", ".*_cache"
        )
        shutil.copytree(ROOT, copy, ignore=ignored, symlinks=True)
        for each in chosen:
            began = time.monotonic()
            caught = is_caught(each, copy)
            survived += not caught
            seconds = time.monotonic() - began
            told = "caught" if caught else "SURVIVED"
            sys.stdout.write(f"{told:9} {seconds:4.0f} s  {each.name}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{len(chosen) - survived} of {len(chosen)} caught\n")
    sys.exit(survived > 0)


if __name__ == "__main__":
    main()
