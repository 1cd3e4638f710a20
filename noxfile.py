"""The tests with the oldest and the newest libraries that precheck supports: ``make matrix``."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

OLDEST_TORCH = "torch==2.6.0"
OLDEST_TRANSFORMERS = "transformers==5.0.0"
LIBRARIES = {
    # every dependency at the lower end of the range in pyproject.toml
    "oldest": ("--resolution", "lowest-direct"),
    "oldest-torch": (OLDEST_TORCH,),
    "oldest-transformers": (OLDEST_TRANSFORMERS, "torch==2.13.0"),
    "newest": ("--upgrade",),
}
TOOLS = (
    *("hypothesis", "jsonschema", "pytest", "pytest-randomly", "pytest-timeout", "pytest-xdist"),
    *("selenium",),
)
"""What the tests themselves need."""


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("libraries", list(LIBRARIES))
def matrix(session: nox.Session, libraries: str) -> None:
    """The whole suite; on newer Pythons with the newest libraries alone."""
    if libraries != "newest" and session.python != "3.11":
        session.skip("older libraries are not built for it")
    session.install("-e", ".", *LIBRARIES[libraries])
    session.install(*TOOLS)
    session.run("python", "-m", "pytest", "-n", "logical", "--dist", "loadfile", *session.posargs)
