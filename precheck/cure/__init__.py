"""A checkpoint that breaks, made into one that does not, and the proof: ``precheck fix``."""
