"""Report in, text out."""
