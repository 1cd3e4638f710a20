"""What small tensors tell of a checkpoint, before its weights are read."""
