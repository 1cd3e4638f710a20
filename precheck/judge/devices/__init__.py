"""What a device, its kernels and its engines make of a model."""
