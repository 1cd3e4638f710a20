"""Faults of engines, one each, and the code that names it."""

from __future__ import annotations
