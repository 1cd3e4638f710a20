"""``scan --save-logits``: what a server is compared with later, without the weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from precheck.commands import arguments, terminal
from precheck.errors import UsageError
from precheck.measure.processes import num_processes
from precheck.records.prompts import ImagePrompt
from precheck.records.report import Report
from precheck.served.request import VerifyRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What is run once more after a scan, and written."""

    model: str
    path: Path
    request: VerifyRequest
    """Prompts, and where to run."""
    allow_pickle: bool
    quiet: bool

    def check(self, *, has_weights: bool) -> None:
        """Refuses what would be found out after the scan.

        Args:
            has_weights: whether the scan runs the model, with its weights on disk.

        Raises:
            UsageError: the file cannot be written, or there will be nothing to write.
        """
        if not has_weights:
            raise UsageError(
                "log-probabilities to save, with static or stream (expected weights on disk)",
                hint="omit --static and --stream",
            )
        if num_processes() > 1:
            raise UsageError(
                f"{num_processes()} processes to save log-probabilities (expected 1)",
                hint="start it without accelerate launch",
            )
        if any(isinstance(prompt, ImagePrompt) for prompt in self.request.prompts or ()):
            raise UsageError(
                "log-probabilities to save after images (expected texts, as servers are asked)",
                hint="leave the images out",
            )
        arguments.check_output(self.path)

    def save(self, report: Report) -> None:
        """Runs the prompts in every configuration of a report, and writes what they say.

        Raises:
            PrecheckError: the checkpoint cannot be run, or the file cannot be written.
        """
        from precheck.checkpoint.source import open_checkpoint
        from precheck.served.runs.file import as_bytes
        from precheck.served.runs.save import saved_logits

        with terminal.progress(quiet=self.quiet) as observe:
            checkpoint = open_checkpoint(
                self.model,
                revision=report.model.revision,
                trust_remote_code=self.request.trust_remote_code,
                allow_pickle=self.allow_pickle,
                observe=observe,
            )
            saved = saved_logits(checkpoint, report, request=self.request, observe=observe)
        terminal.write_whole(self.path, as_bytes(saved))
        if not self.quiet:
            terminal.say(f"wrote {self.path}")
