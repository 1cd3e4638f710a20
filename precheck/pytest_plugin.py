"""The pytest plugin: a mark that gates a test on a scan, and a fixture that watches a live model.

pytest loads it in every project whose environment has precheck. Whoever does not use it waits for
nothing: precheck itself is imported where it is needed.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from torch import nn

    from precheck.measure.blame.live import Watch
    from precheck.records.report import Report
    from precheck.records.traces import Overflow

_MARK = "precheck"
_REPORT = "precheck_report"
_REPORTS = pytest.StashKey[dict[str, "Report"]]()


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
    from precheck.pytest_mark import Asked

    with _in_two_lines():
        return Asked.by(request.node.get_closest_marker(_MARK)).checkpoint


@pytest.fixture
def precheck_report(request: pytest.FixtureRequest, precheck_model: object) -> Report:
    """The report on the model; a checkpoint is scanned once for all tests whose marks are alike.

    They may require different configurations, as far as each scan measures them anyway.
    """
    from precheck.pytest_mark import Asked, files_of

    reports = request.config.stash[_REPORTS]
    with _in_two_lines():
        asked = Asked.by(request.node.get_closest_marker(_MARK))
        if not isinstance(precheck_model, str | Path):  # a live model may change
            return asked.scan(precheck_model)
        key = repr((precheck_model, files_of(precheck_model), asked.options))
        if key not in reports or not asked.is_answered_by(reports[key]):
            reports[key] = asked.scan(precheck_model)
        return reports[key]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A marked test fails before it begins unless its model passes."""
    mark = item.get_closest_marker(_MARK)
    if mark is None:
        return
    from precheck.pytest_mark import Asked
    from precheck.render import RENDERERS, Format

    report: Report = item.funcargs[_REPORT]  # type: ignore[attr-defined]  # a function has them
    with _in_two_lines():
        objections = Asked.by(mark).objections(report)
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


@contextmanager
def _in_two_lines() -> Iterator[None]:
    """What stops precheck is a message and a hint, not a traceback of its inside."""
    from precheck.errors import PrecheckError

    try:
        yield
    except PrecheckError as error:
        hint = "" if error.hint is None else f"\nhint: {error.hint}"
        pytest.fail(f"precheck: {error.message}{hint}", pytrace=False)


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
