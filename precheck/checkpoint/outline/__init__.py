"""The model that a config describes, before any of its weights."""
