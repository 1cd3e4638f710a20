"""Which powers of two a model can be multiplied by without changing what it computes."""
