"""Tables of what small tensors tell: ranges of norms and biases, and bounds of layers."""
