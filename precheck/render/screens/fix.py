"""What a fix did and how it was proved: for a terminal, and for the model card."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

from rich.console import Group
from rich.text import Text

from precheck.records.outcomes.fix import Exactness, Remedy, run_label
from precheck.records.precision import Dtype
from precheck.records.quantities import bits, listed, magnitude, nats, percent
from precheck.render.parts.columns import Column, table
from precheck.render.parts.markdown import code, prose
from precheck.render.parts.printed import printed
from precheck.render.parts.words import DASH, shown, verdict_text
from precheck.render.parts.wrapping import Wrapped, command, wrapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import RenderableType

    from precheck.records.outcomes.fix import Fix, OpHeadroom, Proof, ProofRun

_LONGEST_TEXT = 40

_EXACTNESS = {
    Exactness.EXACT: "in float32 it gives the same logits, bit for bit",
    Exactness.ROUNDED: "in float32 it gives the same logits, apart from rounding",
    Exactness.EPSILONS: (
        "in float32 it gives the same logits, apart from the epsilons of norms, which the config "
        "cannot scale"
    ),
    Exactness.APPROXIMATE: "it computes nearly the same result (--allow-approximate)",
}


def render_fix(fix: Fix, *, output: str | None, width: int, colour: bool) -> str:
    """Everything, for a terminal of this width; it ends with what was written and what to do next.

    Args:
        fix: what was done.
        output: the folder that was requested; None without one.
        width: columns.
        colour: whether the terminal shows colours.
    """
    blocks = (*_blocks(fix, width=width), Text(), *_ending(fix, output))
    return printed(Group(*blocks), width=width, colour=colour)


def _ending(fix: Fix, output: str | None) -> Iterator[RenderableType]:
    """What was written, and the next command."""
    folder, model = quote(shown(output or "DIR")), quote(shown(fix.model))
    dtype = "" if fix.dtype is Dtype.FLOAT16 else f" --for {fix.dtype}"
    if fix.is_prediction:
        yield Text("nothing was written (--dry-run)")
        yield command(f"next: precheck fix {model}{dtype} -o {folder}", style="")
    elif not fix.holds or fix.remedy in {Remedy.NOTHING, Remedy.ATTENTION}:
        yield Text("nothing was written")
    elif fix.remedy is Remedy.RESCALING:
        yield wrapped(Text(f"wrote {folder}: load it like the original"))
        required = f"{fix.dtype}+{shown(fix.attn_implementation)}"
        yield command(f"next: precheck scan {folder} --require {required}", style="")
    else:
        file = f"{shown(output or 'DIR')}/precheck-recipe.json"
        yield wrapped(Text(f"wrote {file}"))
        yield command(f"next: precheck.apply(model, {file!r}), in Python", style="")


def _blocks(fix: Fix, *, width: int) -> Iterator[RenderableType]:
    mark, style = ("✓", "green") if fix.holds else ("✗", "red")
    if fix.is_prediction:
        mark, style = "?", "yellow"
    yield wrapped(Text(f"{mark} {shown(fix.model)}: {shown(fix.sentence)}", style=f"bold {style}"))
    yield from (_indented(reason) for reason in fix.reasons)
    if fix.factors or fix.settings:
        yield Text()
        yield from (_indented(change) for change in changes(fix))
    yield from (_indented(f"note: {note}") for note in fix.notes)
    if fix.rooms and (fix.factors or fix.settings):
        yield Text()
        yield table(_room_columns(fix.rooms), width=width)
    if fix.proof is not None:
        yield from _proof_blocks(fix, fix.proof, width=width)


def _indented(text: str, *, style: str = "") -> Wrapped:
    """By two columns, in every line."""
    return wrapped(Text(shown(text), style=style), indent=2)


def changes(fix: Fix) -> Iterator[str]:
    """What was multiplied, one line for each factor."""
    count = {(factor.power, factor.shift is not None) for factor in fix.factors}
    for power, is_shifted in sorted(count):
        names = [
            factor.parameter
            for factor in fix.factors
            if (factor.power, factor.shift is not None) == (power, is_shifted)
        ]
        what = "1 + w of " if is_shifted else ""
        yield f"x 2^{power:<4} {what}{listed(tuple(names), most=1)}"
    for setting in fix.settings:
        yield f"{setting.name} {setting.before:g} -> {setting.after:g}"


def _room_columns(rooms: Sequence[OpHeadroom]) -> tuple[Column, ...]:
    def left(header: str, cells: list[str], *, rank: int = 0) -> Column:
        return Column(
            header=header, cells=[Text(shown(cell)) for cell in cells], rank=rank, justify="left"
        )

    return (
        left("result of", [room.module or "the model" for room in rooms]),
        left("operation", [room.op for room in rooms], rank=2),
        left("source", [room.source for room in rooms], rank=1),
        Column(header="largest", cells=[Text(magnitude(room.abs_max)) for room in rooms]),
        Column(header="bits before", cells=[_bits(room.before_bits) for room in rooms]),
        Column(header="after", cells=[_bits(room.after_bits) for room in rooms]),
    )


def _bits(value: float | None) -> Text:
    if value is None:
        return Text(DASH)
    return Text(bits(value), style="red" if value < 0 else "")


def _proof_blocks(fix: Fix, proof: Proof, *, width: int) -> Iterator[RenderableType]:
    on = f"on {proof.num_tokens:,} tokens not used to choose the fix"
    claim = f"Proved {on}: {_claim(fix, proof)}" if proof.holds else f"Not proved {on}:"
    yield Text()
    yield Text(claim, style="bold")
    yield from (_indented(objection, style="red") for objection in proof.objections)
    yield table(_run_columns(proof.runs), width=width)
    if not proof.headroom:
        return
    yield Text()
    yield table(
        (
            Column(
                header=f"least headroom in {fix.dtype}",
                cells=[Text(row.mechanism.replace("_", " ")) for row in proof.headroom],
                justify="left",
            ),
            Column(header="bits before", cells=[_bits(e.before_bits) for e in proof.headroom]),
            Column(header="after", cells=[_bits(e.after_bits) for e in proof.headroom]),
        ),
        width=width,
    )
    yield _indented(_rounded(proof))


def _claim(fix: Fix, proof: Proof) -> str:
    """What the figures say; nothing about float32 where that was not run."""
    if proof.exactness is None:
        return f"with these modules in float32, {fix.dtype} gives nearly the same logits as float32"
    return _EXACTNESS[proof.exactness]


def _rounded(proof: Proof) -> str:
    total = max(1, proof.num_changed)
    return (
        f"of the {proof.num_changed:,} values that were multiplied, "
        f"{percent(proof.num_became_zero / total)} became zero in float16, "
        f"{percent(proof.num_became_subnormal / total)} subnormal"
    )


def _run_columns(runs: Sequence[ProofRun]) -> tuple[Column, ...]:
    def figures(header: str, cells: list[str], *, rank: int = 0) -> Column:
        return Column(header=header, cells=[Text(cell) for cell in cells], rank=rank)

    return (
        Column(
            header="run",
            cells=[Text(f"{e.checkpoint} {_run_name(e)}") for e in runs],
            justify="left",
        ),
        Column(header="verdict", cells=[verdict_text(e.verdict) for e in runs], justify="left"),
        figures("KL", [DASH if (kl := e.kl_divergence_mean) is None else nats(kl) for e in runs]),
        figures(
            "top-1",
            [DASH if (top := e.top1_agreement) is None else percent(top) for e in runs],
            rank=2,
        ),
        figures("largest\ndifference", [_difference(run) for run in runs], rank=1),
        Column(
            header="generates",
            cells=[Text(shown(repr(e.greedy or ""))[:_LONGEST_TEXT]) for e in runs],
            rank=3,
            justify="left",
        ),
    )


def _run_name(run: ProofRun) -> str:
    """``float16 + sdpa``, and ``with images`` or ``tied`` where that sets it apart."""
    label = run_label(run)
    return f"{run.dtype} + {shown(run.attn_implementation)}{label.removeprefix(run.dtype)}"


def _difference(run: ProofRun) -> str:
    if run.is_identical:
        return "identical"
    return DASH if run.max_logit_difference is None else f"{run.max_logit_difference:.1e}"


def render_fix_card(fix: Fix) -> str:
    """A section for the model card, in Markdown."""
    lines = [
        f"## Rescaled for {fix.dtype}",
        "",
        (
            f"Made from {code(fix.model)} with precheck {prose(fix.precheck_version)}: weights "
            f"were multiplied by powers of two, so that every result fits into {fix.dtype}."
        ),
    ]
    proof = fix.proof
    if proof is not None:
        lines += [
            f"On {proof.num_tokens:,} tokens {_claim(fix, proof)}.",
            "",
            "| run | KL to the original in float32, nat | top-1 |",
            "|---|---:|---:|",
            *(_card_row(run) for run in proof.runs),
        ]
    lines += ["", *(f"- {prose(change)}" for change in (*changes(fix), *fix.notes)), ""]
    lines.append("All factors and figures: `precheck-fix.json`.")
    return "\n".join(lines) + "\n"


def _card_row(run: ProofRun) -> str:
    kl = "not finite" if run.kl_divergence_mean is None else nats(run.kl_divergence_mean)
    top = DASH if run.top1_agreement is None else percent(run.top1_agreement)
    return f"| {run.checkpoint}, {run_label(run)} | {kl} | {top} |"
