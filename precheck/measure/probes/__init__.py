"""The inputs of a scan."""
