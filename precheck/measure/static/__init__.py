"""What is known of a checkpoint without running it."""
