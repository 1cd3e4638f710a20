"""What a checkpoint or a live model is before anything runs."""
