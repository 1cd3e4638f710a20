"""Every run over every batch, together, unit by unit."""
