"""What no input exceeds: upper bounds of every operation, from the weights."""
