"""Number formats: what storing a tensor in one makes of its numbers."""
