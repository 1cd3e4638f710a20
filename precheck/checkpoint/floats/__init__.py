"""Weights in floating-point formats of 4 and 8 bits: found in a checkpoint, checked, decoded."""
