"""The tests with the oldest and the newest libraries that precheck supports: ``make matrix``."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False

LIBRARIES = {
    # every dependency at the lower end of its range in pyproject.toml
    "oldest": ("--resolution", "lowest-direct"),
    "oldest-torch": ("torch==2.7.0",),
    "oldest-transformers": ("transformers==5.10.*", "torch==2.13.0"),
    "newest": ("--upgrade",),
}


@nox.session(python=["3.11", "3.12", "3.13"])
@nox.parametrize("libraries", list(LIBRARIES))
def matrix(session: nox.Session, libraries: str) -> None:
    """The whole suite; on newer Pythons with the newest libraries alone."""
    if libraries != "newest" and session.python != "3.11":
        session.skip("the oldest libraries are not built for it")
    session.install("-e", ".", *LIBRARIES[libraries])
    session.install("--group", "test")
    session.run("python", "-m", "pytest", "-n", "logical", "--dist", "loadfile", *session.posargs)
