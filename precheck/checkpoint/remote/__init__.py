"""Weights that stay on the Hub: their headers and tensors are read by byte range."""
