"""What is shown of runs whose key-value cache or weights are stored in a format."""
