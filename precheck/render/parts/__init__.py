"""What formats and screens are made of."""
