"""What the default output is made of."""
