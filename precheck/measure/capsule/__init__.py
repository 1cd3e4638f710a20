"""The layer that overflows, for somebody without the model."""
