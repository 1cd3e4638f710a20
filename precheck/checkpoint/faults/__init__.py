"""What is wrong with a checkpoint by its headers alone: names that do not match, absent scales."""
