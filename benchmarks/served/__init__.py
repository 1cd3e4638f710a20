"""Real engines, each compared with the checkpoint that it serves: make engines."""
