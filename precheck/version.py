"""The version of precheck, which reports carry, and where it is to be had."""

from __future__ import annotations

__version__ = "0.1.0"

PROJECT_URL = ""
"""The repository; while it is empty, no report says how to install precheck."""
