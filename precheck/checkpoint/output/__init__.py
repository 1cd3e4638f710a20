"""A folder written whole or not at all, beside what is there."""
