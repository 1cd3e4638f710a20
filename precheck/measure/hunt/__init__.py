"""Searches for the inputs that make operations large."""
