"""Findings: one module a family, all rules in one tuple."""
