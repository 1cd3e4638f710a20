"""What to use, and why not the rest."""
