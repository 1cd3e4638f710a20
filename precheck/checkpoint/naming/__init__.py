"""From what the user names to files."""
