"""The pytest plugin: a mark that gates a test on a scan, and a fixture that watches a live model.

pytest loads it in every project whose environment has precheck. Whoever does not use it waits for
nothing: precheck itself is imported where it is needed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from torch import nn

    from precheck.judge.baseline import Accepted
    from precheck.measure.blame.live import Watch
    from precheck.records.configuration import Configuration
    from precheck.records.report import Report
    from precheck.records.traces import Overflow

_MARK = "precheck"
_REPORT = "precheck_report"
_REPORTS = pytest.StashKey[dict[str, "Report"]]()
_OF_THE_MARK = ("model", "fail_on", "baseline")


def pytest_configure(config: pytest.Config) -> None:
    """Registers the mark."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(*configurations, model=None, fail_on='error', baseline=None, **scan): fail unless"
        " the model passes in each configuration, such as 'float16+sdpa'; without any, as a plain"
        " from_pretrained would load it. scan: arguments of precheck.scan, such as quick=True.",
    )
    config.stash[_REPORTS] = {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """A marked test has a report, whether it asks for the fixture or not."""
    names: list[str] = getattr(item, "fixturenames", [])
    if item.get_closest_marker(_MARK) is not None and _REPORT not in names:
        names.append(_REPORT)


@pytest.fixture
def precheck_model(request: pytest.FixtureRequest) -> object:
    """The model to scan: the mark's. Define a fixture of this name to scan a live one."""
    with _in_two_lines():
        return _Asked.by(request.node).checkpoint


@pytest.fixture
def precheck_report(request: pytest.FixtureRequest, precheck_model: object) -> Report:
    """The report on the model; a checkpoint is scanned once for all tests that ask for the same."""
    reports = request.config.stash[_REPORTS]
    with _in_two_lines():
        asked = _Asked.by(request.node)
        if not isinstance(precheck_model, str | Path):  # a live model may change
            return asked.scan(precheck_model)
        key = repr((precheck_model, _files(precheck_model), asked.require, asked.options))
        if key not in reports:
            reports[key] = asked.scan(precheck_model)
        return reports[key]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A marked test fails before it begins unless its model passes."""
    if item.get_closest_marker(_MARK) is None:
        return
    from precheck.render import RENDERERS, Format

    report: Report = item.funcargs[_REPORT]  # type: ignore[attr-defined]  # a function has them
    with _in_two_lines():
        objections = _Asked.by(item).objections(report)
    if objections:
        item.add_report_section("call", "precheck", RENDERERS[Format.TABLE].render(report))
        pytest.fail("\n".join(objections), pytrace=False)


@pytest.fixture
def precheck_watch() -> Callable[..., AbstractContextManager[Watch]]:
    """Watches a live model inside a ``with`` block, and fails the test where it breaks.

    Example:
        ``with precheck_watch(model): model.generate(**inputs)``
    """
    return _watching


@contextmanager
def _watching(model: nn.Module, *, sample_every: int = 1) -> Iterator[Watch]:
    import precheck

    watch = precheck.watch(model, sample_every=sample_every)
    try:
        with watch:
            yield watch
    except Exception as error:
        if watch.first_overflow is None:
            raise
        raise pytest.fail.Exception(_told(watch, watch.first_overflow), pytrace=False) from error
    if watch.first_overflow is not None:
        pytest.fail(_told(watch, watch.first_overflow), pytrace=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a mark asks for; without one, a scan of whatever ``precheck_model`` is."""

    require: tuple[Configuration, ...] = ()
    model: str | Path | None = None
    fail_on: str = "error"
    baseline: tuple[Accepted, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def by(cls, node: pytest.Item) -> Self:
        """From the mark that is closest to a test.

        Raises:
            UsageError: a configuration or an argument that there is not.
            BaselineError: a baseline that cannot be used.
        """
        import precheck
        from precheck.errors import unknown
        from precheck.judge.baseline import read_baseline
        from precheck.judge.gate import FailOn
        from precheck.records.configuration import Configuration

        mark = node.get_closest_marker(_MARK)
        if mark is None:
            return cls()
        options = dict(mark.kwargs)
        model, fail_on, baseline = (options.pop(name, None) for name in _OF_THE_MARK)
        of_scan = signature(precheck.scan).parameters.keys() - {"model", "require", "observe"}
        for name in options.keys() - of_scan:
            known = sorted({*_OF_THE_MARK, *of_scan})
            raise unknown(
                "argument of the mark", name, known, hint="the others are precheck.scan's"
            )
        if fail_on not in {None, *FailOn}:
            raise unknown("fail_on", str(fail_on), FailOn, hint="leave it out for errors")
        text = "" if baseline is None else Path(baseline).read_text(encoding="utf-8-sig")
        return cls(
            require=tuple(map(Configuration.parse, mark.args)),
            model=model,
            fail_on=fail_on or FailOn.ERROR,
            baseline=read_baseline(text),
            options=options,
        )

    @property
    def checkpoint(self) -> str | Path:
        """The mark's model.

        Raises:
            UsageError: it names none.
        """
        from precheck.errors import UsageError

        if self.model is None:
            raise UsageError(
                "no model to scan (expected one in the mark, or a fixture precheck_model)",
                hint=f'@pytest.mark.{_MARK}("float16+sdpa", model="Qwen/Qwen2-0.5B")',
            )
        return self.model

    def scan(self, model: Any) -> Report:  # noqa: ANN401  scan checks what it is given
        """The report on a model, measured in what is required besides the usual."""
        import precheck

        return precheck.scan(model, require=self.require, **self.options)

    def objections(self, report: Report) -> list[str]:
        """Why the model does not pass, a line each; none if it does."""
        from precheck.judge.baseline import accept
        from precheck.judge.gate import FailOn, gate
        from precheck.records.finding import Severity
        from precheck.render.parts.words import shown

        report = accept(report, self.baseline)
        outcome = gate(report, require=self.require, fail_on=FailOn(self.fail_on))
        if report.complete and outcome.holds:
            return []
        reasons = [f"FAIL: {reason}" for reason in outcome.reasons]
        if not report.complete:
            reasons = [f"INCOMPLETE: {report.incomplete_reason or 'the scan ended early'}"]
        findings = [
            f"{finding.code}: {finding.message}"
            for finding in report.findings
            if finding.severity is not Severity.NOTE and finding.accepted is None
        ]
        return [shown(line) for line in (*reasons, *findings)]


@contextmanager
def _in_two_lines() -> Iterator[None]:
    """What stops precheck is told as message and hint, not as a traceback of its inside."""
    from precheck.errors import PrecheckError

    try:
        yield
    except PrecheckError as error:
        hint = "" if error.hint is None else f"\nhint: {error.hint}"
        pytest.fail(f"precheck: {error.message}{hint}", pytrace=False)


def _files(model: str | Path) -> list[tuple[str, int, int]]:
    """What tells that a local checkpoint has been written again."""
    folder = Path(model)
    found = ((each.name, each.stat()) for each in folder.iterdir()) if folder.is_dir() else ()
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _told(watch: Watch, first: Overflow) -> str:
    """The first operation that broke: what, module, source line, how much of it, and when."""
    from precheck.records.precision import Dtype
    from precheck.records.quantities import counted, magnitude
    from precheck.render.parts.words import shown

    dtype = next((dtype for dtype in Dtype if dtype.limits.max == first.limit), "its dtype")
    elements = f"{counted(first.num_elements, 'element')} not finite"
    facts = {
        "where": first.module,
        "operation": f"{first.op} at {first.source}",
        "code": first.code,
        "size": f"{elements}; the maximum of {dtype} is {magnitude(first.limit)}",
        "when": f"forward {watch.broken_forward} (0 is the prompt)",
    }
    if not watch.is_origin:
        facts["note"] = "the fault began earlier, in a forward that was not watched"
    lines = (f"  {label:<11}{shown(value)}" for label, value in facts.items())
    return "\n".join((f"{first.event} in {shown(first.module)}", *lines))
