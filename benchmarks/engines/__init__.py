"""Quantised key-value caches in real engines, against what transformers and precheck compute."""
