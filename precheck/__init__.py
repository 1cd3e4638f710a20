"""precheck: does this model run in half precision here, and if not, which operation breaks it."""

from __future__ import annotations

__version__ = "0.1.0"
