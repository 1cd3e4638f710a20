"""Where weights come from, and what they are before anything runs."""
