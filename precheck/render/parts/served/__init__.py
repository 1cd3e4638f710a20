"""What reports on a running engine have in common."""
