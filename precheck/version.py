"""The version of precheck, which reports carry."""

from __future__ import annotations

__version__ = "0.1.0"
