"""The only room that runs a model."""
